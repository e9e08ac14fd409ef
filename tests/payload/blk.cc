// SPDX-License-Identifier: Apache-2.0
// A block device (virtio 1.2 §5.2): capacity (sectors=N), write, flush and read back, identity (id=TEXT),
// what lies beyond the end, unknown requests, discard and write-zeroes, every queue, completion by MSI-X. A
// read-only disk must refuse writes. disk=N takes the N-th, from 0. What the disk holds is lost.
#include "tests/payload/lib/apic.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

enum Request : uint32_t { kRead = 0, kWrite = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13 };
enum Status : uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2, kUntouched = 0xEE };
constexpr uint64_t kFeatureReadOnly = 1ull << 5;
constexpr uint64_t kFeatureFlush = 1ull << 9;
constexpr uint64_t kFeatureQueues = 1ull << 12;
constexpr uint64_t kFeatureDiscard = 1ull << 13;
constexpr uint64_t kFeatureWriteZeroes = 1ull << 14;
constexpr uint32_t kSectorBytes = 512;
constexpr uint8_t kVector = kFirstVector;
constexpr unsigned kMaxQueues = 16;

struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};
struct Range {
  uint64_t sector;
  uint32_t sectors;
  uint32_t flags;
};

VirtioDevice g_device;
VirtioQueue g_queues[kMaxQueues];
uint64_t g_capacity;
volatile unsigned g_interrupts;
alignas(4096) uint8_t g_data[16 * 4096];
alignas(4096) uint8_t g_read[16 * 4096];

void Fill(uint64_t seed) {
  uint64_t value = seed * 0x9E37'79B9'7F4A'7C15 + 1;
  for (uint8_t& byte : g_data) {
    value = value * 6364136223846793005 + 1442695040888963407;
    byte = static_cast<uint8_t>(value >> 56);
  }
}

Status Do(unsigned queue, uint32_t type, uint64_t sector, void* data, uint32_t bytes) {
  static Header header;
  static volatile uint8_t status;
  header = {type, 0, sector};
  status = kUntouched;
  Buffer buffers[3] = {{&header, sizeof header, false}};
  unsigned count = 1;
  if (bytes > 0) buffers[count++] = {data, bytes, type == kRead || type == kGetId};
  buffers[count++] = {const_cast<uint8_t*>(&status), 1, true};
  uint32_t used = 0;
  if (!Transact(&g_queues[queue], buffers, count, &used)) return kUntouched;
  return static_cast<Status>(status);
}

bool SameAsRead(uint32_t bytes) { return __builtin_memcmp(g_data, g_read, bytes) == 0; }

bool WriteAndReadBack(const char* name, unsigned queue, uint64_t sector, uint32_t bytes, uint64_t seed) {
  Fill(seed);
  if (!ExpectEqual(name, "write", Do(queue, kWrite, sector, g_data, bytes), kOk)) return false;
  if (!ExpectEqual(name, "flush", Do(queue, kFlush, 0, nullptr, 0), kOk)) return false;
  __builtin_memset(g_read, 0xAA, sizeof g_read);
  if (!ExpectEqual(name, "read", Do(queue, kRead, sector, g_read, bytes), kOk)) return false;
  return Expect(name, "other bytes read than written", SameAsRead(bytes));
}

// By polling or, with vectors, by MSI-X: one vector for all queues.
bool Start(const char* name, uint16_t vector) {
  if (!Expect(
          name, "features refused",
          g_device.Start(kFeatureReadOnly | kFeatureFlush | kFeatureQueues | kFeatureDiscard | kFeatureWriteZeroes))) {
    return false;
  }
  for (uint16_t i = 0; i < g_device.QueueCount() && i < kMaxQueues; ++i) {
    if (!Expect(name, "queue refused", g_device.SetUpQueue(i, &g_queues[i], vector))) return false;
  }
  g_device.Ready();
  return true;
}

void Capacity() {
  g_capacity = g_device.Config<uint64_t>(0);
  if (!ExpectEqual("blk-capacity", "sectors", g_capacity, Parameter("sectors", g_capacity))) return;
  if (Expect("blk-capacity", "fewer than 256 sectors", g_capacity >= 256)) Pass("blk-capacity");
}

void ReadWrite() {
  const uint64_t last = g_capacity - sizeof g_data / kSectorBytes;
  if (WriteAndReadBack("blk-write-read", 0, 0, sizeof g_data, 1) && WriteAndReadBack("blk-write-read", 0, 3, 512, 2) &&
      WriteAndReadBack("blk-write-read", 0, last, sizeof g_data, 3) &&
      WriteAndReadBack("blk-write-read", 0, g_capacity - 1, 512, 4)) {
    Pass("blk-write-read");
  }
}

void ReadOnly() {
  if (!ExpectEqual("blk-read-only", "read", Do(0, kRead, 0, g_read, 512), kOk)) return;
  __builtin_memcpy(g_data, g_read, 512);
  for (unsigned i = 0; i < 512; ++i) g_read[i] = static_cast<uint8_t>(~g_data[i]);
  if (!ExpectEqual("blk-read-only", "write", Do(0, kWrite, 0, g_read, 512), kIoError)) return;
  if (!ExpectEqual("blk-read-only", "read again", Do(0, kRead, 0, g_read, 512), kOk)) return;
  if (Expect("blk-read-only", "written all the same", SameAsRead(512))) Pass("blk-read-only");
}

void Identity() {
  char id[21] = {};
  char wanted[21];
  if (!ExpectEqual("blk-id", "status", Do(0, kGetId, 0, id, 20), kOk)) return;
  PrintLine("id ", static_cast<const char*>(id));
  if (TextParameter("id", wanted, sizeof wanted) && !Expect("blk-id", "another", TextEquals(id, wanted))) return;
  Pass("blk-id");
}

void OutOfRange() {
  const uint64_t sectors[] = {g_capacity, g_capacity + 1, 1ull << 54, ~0ull, ~0ull >> 9};
  for (const uint64_t sector : sectors) {
    if (!ExpectEqual("blk-range", "read", Do(0, kRead, sector, g_read, 512), kIoError)) return;
    if (!ExpectEqual("blk-range", "write", Do(0, kWrite, sector, g_data, 512), kIoError)) return;
  }
  if (!ExpectEqual("blk-range", "read across the end", Do(0, kRead, g_capacity - 1, g_read, 1024), kIoError)) return;
  if (!ExpectEqual("blk-range", "unknown request", Do(0, 0x7777, 0, nullptr, 0), kUnsupported)) return;
  if (ExpectEqual("blk-range", "read after all that", Do(0, kRead, 0, g_read, 512), kOk)) Pass("blk-range");
}

bool AllZero(uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i) {
    if (g_read[i] != 0) return false;
  }
  return true;
}

// Zeroes sectors 16 to 31 of 64 written, and nothing else.
void WriteZeroes(const char* name, uint32_t flags) {
  constexpr uint32_t kBytes = 64 * kSectorBytes;
  if (!WriteAndReadBack(name, 0, 0, kBytes, 5)) return;
  Range range{16, 16, flags};
  if (!ExpectEqual(name, "status", Do(0, kWriteZeroes, 0, &range, sizeof range), kOk)) return;
  if (!ExpectEqual(name, "read", Do(0, kRead, 16, g_read, 16 * kSectorBytes), kOk)) return;
  if (!Expect(name, "not zero", AllZero(16 * kSectorBytes))) return;
  if (!ExpectEqual(name, "read", Do(0, kRead, 0, g_read, 16 * kSectorBytes), kOk)) return;
  if (!Expect(name, "what lies before is lost", SameAsRead(16 * kSectorBytes))) return;
  if (!ExpectEqual(name, "read", Do(0, kRead, 32, g_read, 512), kOk)) return;
  if (!Expect(name, "what lies behind is lost", __builtin_memcmp(g_read, g_data + 32 * kSectorBytes, 512) == 0)) return;
  range = {g_capacity - 1, 2, flags};
  if (ExpectEqual(name, "across the end", Do(0, kWriteZeroes, 0, &range, sizeof range), kIoError)) Pass(name);
}

// What a discarded sector holds is not said; its neighbours keep theirs.
void Discard() {
  const char* const name = "blk-discard";
  if (!WriteAndReadBack(name, 0, 0, 64 * kSectorBytes, 6)) return;
  Range range{16, 16, 0};
  if (!ExpectEqual(name, "status", Do(0, kDiscard, 0, &range, sizeof range), kOk)) return;
  if (!ExpectEqual(name, "read", Do(0, kRead, 0, g_read, 16 * kSectorBytes), kOk)) return;
  if (!Expect(name, "what lies before is lost", SameAsRead(16 * kSectorBytes))) return;
  range = {g_capacity, 1, 0};
  if (ExpectEqual(name, "beyond the end", Do(0, kDiscard, 0, &range, sizeof range), kIoError)) Pass(name);
}

void Queues() {
  const uint16_t count = g_device.QueueCount();
  if ((g_device.features() & kFeatureQueues) != 0 &&
      !ExpectEqual("blk-queues", "configuration", g_device.Config<uint16_t>(34), count)) {
    return;
  }
  for (unsigned i = 0; i < count && i < kMaxQueues; ++i) {
    if (!WriteAndReadBack("blk-queues", i, 64 + i, 512, 100 + i)) return;
  }
  PrintLine("queues ", uint64_t{count});
  Pass("blk-queues");
}

void Interrupts() {
  g_device.pci().SetMsix(true, false);
  g_device.pci().SetMsixVector(0, kVector, LocalApicId(), false);
  SetHandler(kVector, [](uint8_t) { g_interrupts = g_interrupts + 1; });
  InterruptsOn();
  if (!Start("blk-msix", 0)) return;
  for (unsigned i = 1; i <= 100; ++i) {
    const unsigned before = g_interrupts;
    if (!ExpectEqual("blk-msix", "read", Do(0, kRead, i, g_read, 4096), kOk)) return;
    if (!Expect("blk-msix", "no interrupt", Await([before] { return g_interrupts > before; }))) return;
  }
  if (ExpectEqual("blk-msix", "interrupts", g_interrupts, 100)) Pass("blk-msix");
}

}  // namespace

void Main() {
  if (!g_device.Find(kVirtioBlock, static_cast<unsigned>(Parameter("disk", 0)))) {
    Fail("blk-capacity", "no such block device");
    return;
  }
  if (!Start("blk-start", VirtioDevice::kNoVector)) return;
  Capacity();
  Identity();
  if ((g_device.features() & kFeatureReadOnly) != 0) {
    ReadOnly();
  } else {
    ReadWrite();
    OutOfRange();
    if ((g_device.features() & kFeatureWriteZeroes) != 0) {
      WriteZeroes("blk-write-zeroes", 0);
      WriteZeroes("blk-write-zeroes-unmap", 1);
    }
    if ((g_device.features() & kFeatureDiscard) != 0) Discard();
    Queues();
  }
  Interrupts();
}
