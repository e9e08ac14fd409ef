// SPDX-License-Identifier: Apache-2.0
// Says "ready", then keeps its devices at work for good: a round is reads=N (0) reads of 4 KiB from the first disk, a
// look at the serial port, and one at the identity of each PCI function; "tick" after each round, then pauses=N
// (100000), with which it is some thousand rounds a second at most.
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr uint16_t kConfigAddress = 0xCF8, kConfigData = 0xCFC;
constexpr uint16_t kScratch = 0x3FF;
constexpr unsigned kSlots = 8;
constexpr uint64_t kSectorsPerRead = 8;
constexpr uint64_t kSectorsUsed = 8192;

struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};

VirtioQueue g_queue;
alignas(4096) uint8_t g_data[4096];

bool StartDisk() {
  static VirtioDevice disk;
  if (!Expect("ticking", "no disk", disk.Find(kVirtioBlock))) return false;
  if (!Expect("ticking", "features refused", disk.Start(0))) return false;
  if (!Expect("ticking", "queue refused", disk.SetUpQueue(0, &g_queue))) return false;
  disk.Ready();
  return true;
}

bool Read(uint64_t sector) {
  static Header header;
  static uint8_t status;
  header = {0, 0, sector};
  const Buffer buffers[3] = {{&header, sizeof header, false}, {g_data, sizeof g_data, true}, {&status, 1, true}};
  uint32_t used = 0;
  return Transact(&g_queue, buffers, 3, &used) && status == 0;
}

void LookAround() {
  In8(kScratch);
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    Out32(kConfigAddress, 0x8000'0000 | slot << 11);
    In32(kConfigData);
  }
}

}  // namespace

void Main() {
  const uint64_t reads = Parameter("reads", 0), pauses = Parameter("pauses", 100'000);
  if (reads != 0 && !StartDisk()) return;
  uint64_t sector = 0;
  Print("ready\n");
  for (;;) {
    for (uint64_t i = 0; i < reads; ++i) {
      if (!Expect("ticking", "a read failed", Read(sector))) return;
      sector = (sector + kSectorsPerRead) % kSectorsUsed;
    }
    LookAround();
    Print("tick\n");
    for (uint64_t i = 0; i < pauses; ++i) Pause();
  }
}
