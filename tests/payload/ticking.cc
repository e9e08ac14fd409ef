// SPDX-License-Identifier: Apache-2.0
// Says "ready", then looks at every device for good: the serial port, and each PCI function's identity; "tick" after
// each round, some thousand times a second at most.
#include "tests/payload/lib/payload.h"

using namespace payload;

namespace {

constexpr uint16_t kConfigAddress = 0xCF8, kConfigData = 0xCFC;
constexpr uint16_t kScratch = 0x3FF;
constexpr unsigned kSlots = 8;
constexpr unsigned kPausesPerRound = 100'000;

}  // namespace

void Main() {
  Print("ready\n");
  for (;;) {
    In8(kScratch);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      Out32(kConfigAddress, 0x8000'0000 | slot << 11);
      In32(kConfigData);
    }
    Print("tick\n");
    for (unsigned i = 0; i < kPausesPerRound; ++i) Pause();
  }
}
