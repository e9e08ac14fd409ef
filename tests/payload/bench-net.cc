// SPDX-License-Identifier: Apache-2.0
// What a network interface carries, under any VMM that enters a kernel by PVH, with build/tests/net-peer at the other
// end: load0=KIND,BYTES,COUNT[,DEPTH], load1=... Each load says how many cycles COUNT frames of BYTES took:
//
//   send     as many as the device takes
//   receive  as many as it gives while the peer sends without end; from the first on
//   echo     there and back, DEPTH of them on their way at a time
//
// wire=ethernet: a bare protocol for tests; frames above 1514 bytes are TCP segments that the other end cuts (or not).
// wire=udp: datagrams to port=N of the host of user-mode networking. Rings are polled and the device is asked for no
// interrupts: at CPL 0 an interrupt's delivery would be interpreted on some machines. "begin" and "end" tell the clock,
// so that who reads them can tell how fast it runs. Then it sleeps for good.
#include "tests/payload/lib/frame.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

PAYLOAD_PVH;

namespace {

constexpr uint64_t kFeatureChecksum = 1ull << 0;
constexpr uint64_t kFeatureGuestChecksum = 1ull << 1;
constexpr uint64_t kFeatureGuestTso4 = 1ull << 7;
constexpr uint64_t kFeatureHostTso4 = 1ull << 11;
constexpr uint64_t kFeatureMergeBuffers = 1ull << 15;

constexpr unsigned kSlots = VirtioQueue::kMaxSize;
constexpr uint32_t kRoomBytes = 4096;      // as drivers with merged buffers post them
constexpr uint32_t kSlotBytes = 80 << 10;  // a frame to send, the largest with its header
constexpr uint64_t kRooms = 64ull << 20;   // guest physical; 128 MiB are enough
constexpr uint64_t kFrames = kRooms + kSlots * kRoomBytes;
constexpr uint64_t kQuiet = 100'000'000;  // cycles in which what was on its way arrives

struct Load {
  enum Kind { kSend, kReceive, kEcho } kind;
  uint32_t bytes;
  uint64_t count;
  unsigned depth;
};

VirtioDevice g_device;
VirtioQueue g_receive, g_transmit;
Framing g_framing;
unsigned g_sending;  // slots of the transmit queue that the device has
unsigned g_next_slot;

uint8_t* Room(unsigned slot) { return reinterpret_cast<uint8_t*>(kRooms + uint64_t{slot} * kRoomBytes); }
uint8_t* Slot(unsigned slot) { return reinterpret_cast<uint8_t*>(kFrames + uint64_t{slot} * kSlotBytes); }

void Reclaim() {
  uint16_t head;
  uint32_t bytes;
  while (g_transmit.TakeUsed(&head, &bytes)) --g_sending;
}

template <typename Condition>
bool Wait(const char* what, Condition condition) {
  return Expect("bench-net", what, AwaitUndisturbed(condition));
}

// Every slot has a frame that says `message`, to be sent as often as its turn comes.
void Prepare(const Message& message, uint32_t bytes) {
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    const uint32_t total = g_framing.Build(Slot(slot), message, bytes);
    const Buffer buffer{Slot(slot), total, false};
    g_transmit.Describe(static_cast<uint16_t>(slot), &buffer, 1);
  }
}

// The device gives slots back in the order it got them: no network device here does otherwise, and a frame that is
// changed on its way would only be sent as another of its kind.
bool SendNext() {
  if (g_sending == kSlots) {
    g_transmit.NotifyIfAsked();
    if (!Wait("what was sent is not given back", [] { return Reclaim(), g_sending < kSlots; })) return false;
  }
  g_transmit.Offer(static_cast<uint16_t>(g_next_slot));
  g_next_slot = (g_next_slot + 1) % kSlots;
  ++g_sending;
  return true;
}

// Frames of that kind that have come; others are counted out. The rooms are given to the device again.
unsigned TakeReceived(Operation operation, uint32_t bytes) {
  unsigned frames = 0;
  uint16_t head;
  uint32_t used;
  static unsigned more;  // rooms of the frame that began in one before
  while (g_receive.TakeUsed(&head, &used)) {
    if (more != 0) {
      --more;
    } else {
      more = Framing::Rooms(Room(head)) - 1u;
      if (g_framing.Is(Room(head), operation, bytes)) ++frames;
    }
    g_receive.Offer(head);
  }
  g_receive.NotifyIfAsked();
  return frames;
}

bool Send(const Load& load) {
  Prepare({kSink, 0}, load.bytes);
  const uint64_t begun = Tsc();
  for (uint64_t sent = 0; sent < load.count; ++sent) {
    if (!SendNext()) return false;
    // The first of a ring's worth tells the device, the others find it at work.
    if (sent % 32 == 0) g_transmit.NotifyIfAsked();
  }
  g_transmit.NotifyIfAsked();
  if (!Wait("what was sent is not given back", [] { return Reclaim(), g_sending == 0; })) return false;
  PrintLine("load ", Tsc() - begun);
  return true;
}

bool SendOne(const Message& message) {
  Prepare(message, kSmallestFrame);
  if (!SendNext()) return false;
  g_transmit.NotifyIfAsked();
  return Wait("what was sent is not given back", [] { return Reclaim(), g_sending == 0; });
}

bool Receive(const Load& load) {
  if (!SendOne({kFlood, load.bytes})) return false;
  uint64_t received = 0, begun = 0;
  const auto take = [&] {
    const unsigned frames = TakeReceived(kFlood, load.bytes);
    if (received == 0 && frames != 0) begun = Tsc();
    return frames;
  };
  while (received < load.count) {
    unsigned frames = 0;
    if (!Wait("nothing comes", [&] { return (frames = take()) != 0; })) return false;
    received += frames;
  }
  PrintLine("load ", Tsc() - begun);
  // Until the peer heard that it is enough.
  for (bool quiet = false; !quiet;) {
    if (!SendOne({kStop, 0})) return false;
    quiet = true;
    for (const uint64_t since = Tsc(); Tsc() - since < kQuiet;) quiet &= TakeReceived(kFlood, load.bytes) == 0;
  }
  return true;
}

bool Echo(const Load& load) {
  Prepare({kEcho, 0}, load.bytes);
  const uint64_t begun = Tsc();
  uint64_t sent = 0, received = 0;
  while (received < load.count) {
    Reclaim();
    while (sent < load.count && sent - received < load.depth) {
      if (!SendNext()) return false;
      ++sent;
    }
    g_transmit.NotifyIfAsked();
    unsigned frames = 0;
    if (!Wait("no echo", [&] { return (frames = TakeReceived(kEcho, load.bytes)) != 0; })) return false;
    received += frames;
  }
  PrintLine("load ", Tsc() - begun);
  return Wait("what was sent is not given back", [] { return Reclaim(), g_sending == 0; });
}

bool Parse(const char* text, Load* load) {
  load->kind = *text == 's' ? Load::kSend : *text == 'r' ? Load::kReceive : Load::kEcho;
  while (*text != 0 && *text != ',') ++text;
  load->bytes = static_cast<uint32_t>(TakeNumber(&text));
  load->count = TakeNumber(&text);
  load->depth = static_cast<unsigned>(TakeNumber(&text));
  return load->bytes >= kSmallestFrame && load->bytes <= kLargestFrame && load->count >= 1 && load->depth <= kSlots &&
         (load->kind == Load::kEcho) == (load->depth != 0);
}

bool Start() {
  if (!g_device.Find(kVirtioNet)) return Fail("bench-net", "no network interface");
  const uint64_t wanted = kFeatureChecksum | kFeatureGuestChecksum | kFeatureGuestTso4 | kFeatureHostTso4 |
                          kFeatureMergeBuffers | kFeatureEventIndex;
  if (!Expect("bench-net", "features refused", g_device.Start(wanted)) ||
      !Expect("bench-net", "queue refused",
              g_device.SetUpQueue(0, &g_receive, VirtioDevice::kNoVector, kSlots) &&
                  g_device.SetUpQueue(1, &g_transmit, VirtioDevice::kNoVector, kSlots))) {
    return false;
  }
  g_device.Ready();
  g_receive.Silence();
  g_transmit.Silence();
  uint8_t mac[6];
  for (unsigned i = 0; i < sizeof mac; ++i) mac[i] = g_device.Config<uint8_t>(i);
  char wire[16] = "";
  TextParameter("wire", wire, sizeof wire);
  g_framing = Framing(mac, TextEquals(wire, "udp") ? static_cast<uint16_t>(Parameter("port", 0)) : uint16_t{0});
  // Memory that nobody touched before would be paid for by the first frames.
  __builtin_memset(reinterpret_cast<void*>(kRooms), 0, kSlots * (kRoomBytes + kSlotBytes));
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    const Buffer buffer{Room(slot), kRoomBytes, true};
    g_receive.Describe(static_cast<uint16_t>(slot), &buffer, 1);
    g_receive.Offer(static_cast<uint16_t>(slot));
  }
  g_receive.NotifyIfAsked();
  return true;
}

// Who is to be reached through user-mode networking has to say that it is there.
bool Announce() {
  if (!g_framing.udp()) return true;
  const Buffer buffer{Slot(0), g_framing.BuildArp(Slot(0)), false};
  g_transmit.Describe(0, &buffer, 1);
  if (!SendNext()) return false;
  g_next_slot = 0;
  g_transmit.NotifyIfAsked();
  return Wait("what was sent is not given back", [] { return Reclaim(), g_sending == 0; });
}

bool RunLoads() {
  if (!Start() || !Announce()) return false;
  PrintLine("begin ", Tsc());
  PauseForReader();
  char name[] = "load0", text[64];
  for (; TextParameter(name, text, sizeof text); ++name[4]) {
    Load load;
    if (!Expect("bench-net", "not a load", Parse(text, &load))) return false;
    PrintLine("next ", name);
    PauseForReader();
    const bool done = load.kind == Load::kSend ? Send(load) : load.kind == Load::kReceive ? Receive(load) : Echo(load);
    if (!done) return false;
    PauseForReader();
  }
  PrintLine("end ", Tsc());
  return true;
}

}  // namespace

void Main() {
  if (!RunLoads()) Done();
  Sleep();
}
