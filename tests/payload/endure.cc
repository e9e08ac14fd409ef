// SPDX-License-Identifier: Apache-2.0
// Load that notices when anything goes wrong with a device: blocks written, several at a time, and read back; random
// bytes; numbered lines on the serial port; a clock that never jumps; and, where there is a network interface, numbered
// frames both ways. Round after round, until the disk's last sector begins with "stop". The disk must have 257 blocks
// of 4 KiB or more; what it holds is lost.
#include "tests/payload/lib/numbered_frame.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;
using namespace bulkhead::test;

namespace {

enum Request : uint32_t { kRead = 0, kWrite = 1, kFlush = 4 };
constexpr uint64_t kFeatureFlush = 1ull << 9;
constexpr uint32_t kBlockBytes = 4096, kBlockSectors = kBlockBytes / 512;
constexpr unsigned kBlocks = 256, kAtOnce = 8, kWords = kBlockBytes / sizeof(uint64_t);
// ACPI's timer with all 32 bits (TMR_VAL_EXT).
uint32_t Clock() { return In32(0x608); }
constexpr uint16_t kSerial = 0x3F8, kLineStatus = kSerial + 5;
// A device that is replaced is waited for, never so long: nobody waits longer than half a minute for one.
constexpr uint32_t kClockJumpTicks = 100u * 3'579'545;

struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};
struct Operation {
  Header header;
  volatile uint8_t status;
  alignas(kBlockBytes) uint64_t words[kWords];
};

VirtioDevice g_disk, g_rng;
VirtioQueue g_disk_queue, g_rng_queue;
Operation g_operations[kAtOnce];
uint64_t g_written[kBlocks];  // the round in which each block was written last; 0: not yet
uint64_t g_random = 1;
bool g_stranger;

uint64_t Random() { return g_random = g_random * 6364136223846793005 + 1442695040888963407; }

uint64_t Word(unsigned block, uint64_t round, unsigned word) {
  return (round << 32 | block << 16 | word) * 0x9E37'79B9'7F4A'7C15;
}

void Submit(Operation& operation, uint32_t type, uint64_t sector, uint32_t bytes) {
  operation.header = {type, 0, sector};
  operation.status = 0xEE;
  Buffer buffers[3] = {{&operation.header, sizeof operation.header, false}};
  unsigned count = 1;
  if (bytes != 0) buffers[count++] = {operation.words, bytes, type == kRead};
  buffers[count++] = {const_cast<uint8_t*>(&operation.status), 1, true};
  g_disk_queue.Add(buffers, count);
}

bool Finish(const char* what, unsigned count) {
  g_disk_queue.Notify();
  for (; count != 0; --count) {
    uint16_t head;
    uint32_t bytes;
    if (!Expect("endure", what, Await([&] { return g_disk_queue.TakeUsed(&head, &bytes); }))) return false;
  }
  return true;
}

bool AllWell(const char* what, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    if (!ExpectEqual("endure", what, g_operations[i].status, 0)) return false;
  }
  return true;
}

bool WriteSome(uint64_t round) {
  const auto first = static_cast<unsigned>(Random() >> 33) % kBlocks;
  for (unsigned i = 0; i < kAtOnce; ++i) {
    const unsigned block = (first + i) % kBlocks;
    for (unsigned word = 0; word < kWords; ++word) g_operations[i].words[word] = Word(block, round, word);
    g_written[block] = round;
    Submit(g_operations[i], kWrite, uint64_t{block} * kBlockSectors, kBlockBytes);
  }
  if (!Finish("a write is not answered", kAtOnce) || !AllWell("write", kAtOnce)) return false;
  if (round % 4 != 0) return true;
  Submit(g_operations[0], kFlush, 0, 0);
  return Finish("a flush is not answered", 1) && AllWell("flush", 1);
}

bool ReadSome() {
  unsigned blocks[kAtOnce];
  for (unsigned i = 0; i < kAtOnce; ++i) {
    blocks[i] = static_cast<unsigned>(Random() >> 33) % kBlocks;
    Submit(g_operations[i], kRead, uint64_t{blocks[i]} * kBlockSectors, kBlockBytes);
  }
  if (!Finish("a read is not answered", kAtOnce) || !AllWell("read", kAtOnce)) return false;
  for (unsigned i = 0; i < kAtOnce; ++i) {
    const uint64_t round = g_written[blocks[i]];
    for (unsigned word = 0; round != 0 && word < kWords; ++word) {
      const uint64_t expected = Word(blocks[i], round, word);
      if (!ExpectEqual("endure", "other bytes read than written", g_operations[i].words[word], expected)) return false;
    }
  }
  return true;
}

bool IsTold(uint64_t last_sector, bool* stop) {
  Submit(g_operations[0], kRead, last_sector, 512);
  if (!Finish("a read is not answered", 1) || !AllWell("read of the last sector", 1)) return false;
  *stop = __builtin_memcmp(g_operations[0].words, "stop", 4) == 0;
  return true;
}

void LookAround() {
  for (unsigned slot = 0; slot < 8; ++slot) ReadConfig(slot, 0, sizeof(uint32_t));
}

bool TakeRandom() {
  if (g_stranger) return LookAround(), true;
  static uint8_t bytes[64];
  const Buffer buffer{bytes, sizeof bytes, true};
  uint32_t used = 0;
  if (!Expect("endure", "no random bytes", Transact(&g_rng_queue, &buffer, 1, &used))) return false;
  return Expect("endure", "random bytes: nothing or too much", used > 0 && used <= sizeof bytes);
}

bool Put(char c) {
  if (!Expect("endure", "the serial port takes nothing", Await([] { return (In8(kLineStatus) & 0x20) != 0; })))
    return false;
  Out8(kSerial, static_cast<uint8_t>(c));
  return true;
}

bool PutNumberedLine(uint64_t number) {
  char digits[20];
  unsigned count = 0;
  for (; number != 0 || count == 0; number /= 10) digits[count++] = static_cast<char>('0' + number % 10);
  while (count != 0) {
    if (!Put(digits[--count])) return false;
  }
  return Put('\n');
}

// One that is lost or comes twice is no fault of the device's, as on a wire; one that is changed or comes late is.
class Wire {
 public:
  bool Start() {
    if (!device_.Find(kVirtioNet)) return true;
    if (!Expect("endure", "features of the interface refused", device_.Start(0))) return false;
    if (!Expect("endure", "queue of the interface refused",
                device_.SetUpQueue(0, &receive_) && device_.SetUpQueue(1, &transmit_)))
      return false;
    device_.Ready();
    for (unsigned i = 0; i < sizeof mac_; ++i) mac_[i] = device_.Config<uint8_t>(i);
    for (uint16_t room = 0; room < kRooms; ++room) Post(room);
    receive_.Notify();
    there_ = true;
    return true;
  }
  bool Round() { return !there_ || (SendSome() && TakeArrived()); }

 private:
  static constexpr uint16_t kRooms = 16;
  static constexpr unsigned kAtOnce = 3;
  struct Room {
    uint8_t header[12];
    uint8_t frame[bulkhead::bench::kWholeFrame];
  };

  bool SendSome() {
    const uint8_t host[6] = {2, 0, 0, 0, 0, 1};
    for (unsigned i = 0; i < kAtOnce; ++i) {
      Room& room = sent_[number_ % kRooms];
      if (!Expect("endure", "a frame is not taken", Await([this] { return Reclaim(), under_way_ != kRooms; })))
        return false;
      const uint32_t bytes = PutNumberedFrame(room.frame, host, mac_, {++number_, got_});
      const Buffer buffer{&room, static_cast<uint32_t>(sizeof room.header) + bytes, false};
      transmit_.Add(&buffer, 1);
      ++under_way_;
    }
    transmit_.Notify();
    return true;
  }
  // They come back in their order.
  void Reclaim() {
    uint16_t head;
    uint32_t bytes;
    while (transmit_.TakeUsed(&head, &bytes)) --under_way_;
  }
  bool TakeArrived() {
    uint16_t room;
    uint32_t bytes;
    bool any = false;
    while (receive_.TakeUsed(&room, &bytes)) {
      const uint32_t frame_bytes = bytes - static_cast<uint32_t>(sizeof rooms_[room].header);
      Numbers numbers{};
      if (!Expect("endure", "a frame was changed", TakeNumberedFrame(rooms_[room].frame, frame_bytes, &numbers)))
        return false;
      if (!Expect("endure", "a frame comes late", numbers.number >= got_)) return false;
      got_ = numbers.number;
      Post(room);
      any = true;
    }
    if (any) receive_.Notify();
    return true;
  }
  void Post(uint16_t room) {
    const Buffer buffer{&rooms_[room], sizeof rooms_[room], true};
    receive_.Describe(room, &buffer, 1);
    receive_.Offer(room);
  }

  VirtioDevice device_;
  VirtioQueue receive_, transmit_;
  bool there_ = false;
  uint8_t mac_[6] = {};
  uint32_t number_ = 0, got_ = 0;
  unsigned under_way_ = 0;
  Room sent_[kRooms], rooms_[kRooms];
};

Wire g_wire;

bool StartWith(VirtioDevice* device, VirtioType type, uint64_t features, VirtioQueue* queue) {
  if (!Expect("endure", "a device is not there", device->Find(type))) return false;
  if (!Expect("endure", "features refused", device->Start(features))) return false;
  if (!Expect("endure", "queue refused", device->SetUpQueue(0, queue))) return false;
  device->Ready();
  return true;
}

bool Start() {
  g_stranger = Parameter("stranger", 0) != 0;
  return StartWith(&g_disk, kVirtioBlock, kFeatureFlush, &g_disk_queue) &&
         (g_stranger || StartWith(&g_rng, kVirtioRng, 0, &g_rng_queue)) && g_wire.Start();
}

}  // namespace

void Main() {
  if (!Start()) return;
  const uint64_t last_sector = g_disk.Config<uint64_t>(0) - 1;
  Print("enduring\n");
  uint32_t clock = Clock();
  for (uint64_t round = 1;; ++round) {
    bool stop = false;
    if (!WriteSome(round) || !ReadSome() || !TakeRandom() || !PutNumberedLine(round) || !g_wire.Round() ||
        !IsTold(last_sector, &stop))
      return;
    const uint32_t now = Clock();
    if (!Expect("endure", "the clock has jumped", now - clock < kClockJumpTicks)) return;
    clock = now;
    if (!stop) continue;
    PrintLine("rounds ", round);
    Pass("endure");
    return;
  }
}
