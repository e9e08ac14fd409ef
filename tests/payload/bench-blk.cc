// SPDX-License-Identifier: Apache-2.0
// What requests to a block device take, under any VMM that enters a kernel by PVH: load0=KIND,BYTES,DEPTH,COUNT,STEP,
// load1=... runs COUNT requests of BYTES, DEPTH at a time, each STEP bytes behind the one before, and says how many
// cycles they took; a flush behind writes is counted apart. KIND is read or write. The used ring is polled and the
// device asked for no interrupts: at CPL 0 an interrupt's delivery would be interpreted on some machines. "begin" and
// "end" tell the clock, so that who reads them can tell how fast it runs. Then it sleeps for good.
#include "tests/payload/lib/virtio.h"

using namespace payload;

PAYLOAD_PVH;

namespace {

enum Request : uint32_t { kRead = 0, kWrite = 1, kFlush = 4 };
constexpr uint8_t kOk = 0;
constexpr uint8_t kUntouched = 0xEE;
constexpr uint64_t kFeatureFlush = 1ull << 9;
constexpr uint32_t kSectorBytes = 512;
constexpr unsigned kMaxDepth = 32;
constexpr uint32_t kMaxBytes = 1 << 20;
constexpr uint32_t kSegmentBytes = kMaxBytes / 4;  // 32 chains of 4 segments, header and status fit into a queue of 256
constexpr uint64_t kData = 64ull << 20;            // guest physical; 128 MiB are enough

struct Requests {
  bool write;
  uint32_t bytes;
  unsigned depth;
  uint64_t count;
  uint64_t step;
};

struct alignas(64) Slot {
  struct {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
  } header;
  volatile uint8_t status;
};

VirtioDevice g_device;
VirtioQueue g_queue;
Slot g_slots[kMaxDepth];
uint64_t g_disk_bytes;

bool ParseRequests(const char* text, Requests* load) {
  load->write = *text == 'w';
  while (*text != 0 && *text != ',') ++text;
  load->bytes = static_cast<uint32_t>(TakeNumber(&text));
  load->depth = static_cast<unsigned>(TakeNumber(&text));
  load->count = TakeNumber(&text);
  load->step = TakeNumber(&text);
  return load->bytes >= kSectorBytes && load->bytes <= kMaxBytes && load->bytes % kSectorBytes == 0 &&
         load->step % load->bytes == 0 && g_disk_bytes % load->bytes == 0 && load->depth >= 1 &&
         load->depth <= kMaxDepth && load->count >= 1;
}

// Describes each slot's request, which only its sector tells from the next one; returns the descriptors of one.
unsigned Describe(const Requests& load) {
  unsigned count = 0;
  for (unsigned i = 0; i < load.depth; ++i) {
    Slot& slot = g_slots[i];
    slot.header = {load.write ? kWrite : kRead, 0, 0};
    Buffer buffers[6] = {{&slot.header, sizeof slot.header, false}};
    count = 1;
    for (uint32_t at = 0; at < load.bytes; at += kSegmentBytes) {
      const uint32_t bytes = load.bytes - at < kSegmentBytes ? load.bytes - at : kSegmentBytes;
      // The segments of one request lie apart.
      const uint64_t address = kData + uint64_t{at} * kMaxDepth + uint64_t{i} * kSegmentBytes;
      // Memory that nobody touched before would be paid for by the first requests.
      __builtin_memset(reinterpret_cast<void*>(address), 0x5A, bytes);
      buffers[count++] = {reinterpret_cast<void*>(address), bytes, !load.write};
    }
    buffers[count++] = {const_cast<uint8_t*>(&slot.status), 1, true};
    g_queue.Describe(static_cast<uint16_t>(i * count), buffers, count);
  }
  return count;
}

bool AwaitUsed(uint16_t* head) {
  uint32_t bytes;
  return Expect("bench-blk", "a request does not end",
                AwaitUndisturbed([&] { return g_queue.TakeUsed(head, &bytes); }));
}

bool RunRequests(const Requests& load, unsigned descriptors) {
  uint64_t begun = 0, ended = 0;
  const auto begin = [&](unsigned slot) {
    g_slots[slot].header.sector = begun++ * load.step % g_disk_bytes / kSectorBytes;
    g_slots[slot].status = kUntouched;
    g_queue.Offer(static_cast<uint16_t>(slot * descriptors));
  };
  while (begun < load.depth && begun < load.count) begin(static_cast<unsigned>(begun));
  g_queue.NotifyIfAsked();
  while (ended < load.count) {
    uint16_t head;
    if (!AwaitUsed(&head)) return false;
    do {
      const unsigned slot = head / descriptors;
      if (slot >= load.depth) return Fail("bench-blk", "a chain ends that was not begun");
      if (!ExpectEqual("bench-blk", "status", g_slots[slot].status, kOk)) return false;
      ++ended;
      if (begun < load.count) begin(slot);
    } while (g_queue.HasUsed() && AwaitUsed(&head));
    g_queue.NotifyIfAsked();
  }
  return true;
}

bool Flush() {
  Slot& slot = g_slots[0];
  slot.header = {kFlush, 0, 0};
  slot.status = kUntouched;
  const Buffer buffers[] = {{&slot.header, sizeof slot.header, false}, {const_cast<uint8_t*>(&slot.status), 1, true}};
  g_queue.Describe(0, buffers, 2);
  g_queue.Offer(0);
  g_queue.NotifyIfAsked();
  uint16_t head;
  return AwaitUsed(&head) && ExpectEqual("bench-blk", "flush", slot.status, kOk);
}

bool RunLoad(const Requests& load) {
  const unsigned descriptors = Describe(load);
  const uint64_t begun = Tsc();
  if (!RunRequests(load, descriptors)) return false;
  const uint64_t ended = Tsc();
  if (load.write && !Flush()) return false;
  PrintLine("load ", ended - begun, " flush ", Tsc() - ended);
  return true;
}

bool RunLoads() {
  if (!g_device.Find(kVirtioBlock)) return Fail("bench-blk", "no block device");
  if (!Expect("bench-blk", "features refused", g_device.Start(kFeatureFlush | kFeatureEventIndex)) ||
      !Expect("bench-blk", "queue refused",
              g_device.SetUpQueue(0, &g_queue, VirtioDevice::kNoVector, VirtioQueue::kMaxSize))) {
    return false;
  }
  g_device.Ready();
  g_queue.Silence();
  g_disk_bytes = g_device.Config<uint64_t>(0) * kSectorBytes;
  PrintLine("begin ", Tsc());
  char name[] = "load0", text[64];
  for (; TextParameter(name, text, sizeof text); ++name[4]) {
    Requests load;
    if (!Expect("bench-blk", "not a load", ParseRequests(text, &load))) return false;
    PrintLine("next ", name);
    PauseForReader();
    if (!RunLoad(load)) return false;
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
