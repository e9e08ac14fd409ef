// SPDX-License-Identifier: Apache-2.0
// Reads the serial port's scratch register over and over. "alive" is printed once it answers; when the
// console process is gone, it must read as all ones, as nothing does that is there.
#include "tests/payload/lib/payload.h"

using namespace payload;

void Main() {
  constexpr uint16_t kScratch = 0x3FF;
  constexpr uint8_t kValue = 0x5A;
  Out8(kScratch, kValue);
  if (!ExpectEqual("dead-device-reads-all-ones", "before", In8(kScratch), kValue)) return;
  Print("alive\n");
  uint8_t value = kValue;
  while (value == kValue) value = In8(kScratch);
  if (!ExpectEqual("dead-device-reads-all-ones", "scratch", value, 0xFF)) return;
  // Writes go nowhere, and the processor goes on.
  Out8(kScratch, kValue);
  if (ExpectEqual("dead-device-reads-all-ones", "after a write", In8(kScratch), 0xFF))
    Pass("dead-device-reads-all-ones");
}
