// SPDX-License-Identifier: Apache-2.0
// Writes to memory in known places, for who looks at the dirty log: says "ready", then, for each 'w' that it gets on
// the serial port, writes to vcpu=N (0) pages, has the entropy device fill rng=N (0) and the first disk read into
// disk=N (0) pages of their own, and says "written".
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr uint16_t kSerial = 0x3F8;
constexpr uint16_t kLineStatus = kSerial + 5;
constexpr unsigned kPauses = 20'000;
constexpr uint64_t kMiB = 1 << 20;
// Each writer's pages, above all that the payload has itself.
constexpr uint64_t kVcpuPages = 16 * kMiB, kRngPages = 32 * kMiB, kDiskPages = 48 * kMiB;
constexpr uint64_t kPage = 4096;

struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};

VirtioQueue g_rng_queue, g_disk_queue;

bool StartDevice(VirtioDevice* device, uint16_t type, VirtioQueue* queue) {
  if (!Expect("dirty", "no such device", device->Find(type))) return false;
  if (!Expect("dirty", "features refused", device->Start(0))) return false;
  if (!Expect("dirty", "queue refused", device->SetUpQueue(0, queue))) return false;
  device->Ready();
  return true;
}

bool Fill(uint64_t page) {
  const Buffer buffer{reinterpret_cast<void*>(kRngPages + page * kPage), kPage, true};
  uint32_t used = 0;
  return Transact(&g_rng_queue, &buffer, 1, &used) && used == kPage;
}

bool Read(uint64_t page) {
  static Header header;
  static uint8_t status;
  header = {0, 0, page * (kPage / 512)};
  const Buffer buffers[3] = {{&header, sizeof header, false},
                             {reinterpret_cast<void*>(kDiskPages + page * kPage), kPage, true},
                             {&status, 1, true}};
  uint32_t used = 0;
  return Transact(&g_disk_queue, buffers, 3, &used) && status == 0;
}

}  // namespace

void Main() {
  static VirtioDevice rng, disk;
  const uint64_t vcpu_pages = Parameter("vcpu", 0), rng_pages = Parameter("rng", 0), disk_pages = Parameter("disk", 0);
  if (rng_pages != 0 && !StartDevice(&rng, kVirtioRng, &g_rng_queue)) return;
  if (disk_pages != 0 && !StartDevice(&disk, kVirtioBlock, &g_disk_queue)) return;
  Print("ready\n");
  for (uint64_t round = 1;; ++round) {
    // Each look is an exit; between two others get their turn.
    while ((In8(kLineStatus) & 1) == 0) {
      for (unsigned i = 0; i < kPauses; ++i) Pause();
    }
    if (In8(kSerial) != 'w') continue;
    for (uint64_t i = 0; i < vcpu_pages; ++i) Store<uint64_t>(kVcpuPages + i * kPage, round);
    for (uint64_t i = 0; i < rng_pages; ++i) {
      if (!Expect("dirty", "not filled", Fill(i))) return;
    }
    for (uint64_t i = 0; i < disk_pages; ++i) {
      if (!Expect("dirty", "not read", Read(i))) return;
    }
    Print("written\n");
  }
}
