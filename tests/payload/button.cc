// SPDX-License-Identifier: Apache-2.0
// Waits for the power button (ACPI 6.4 §4.8.2.2.1): "ready" is printed once its interrupt, IRQ 9 by level, is
// enabled. The press is acknowledged, the line must fall with that, and the machine is powered off.
#include "tests/payload/lib/apic.h"

using namespace payload;

namespace {

constexpr uint16_t kPm1Status = 0x600;
constexpr uint16_t kPm1Enable = 0x602;
constexpr uint16_t kPm1Control = 0x604;
constexpr uint16_t kPowerButton = 1 << 8;
constexpr unsigned kSci = 9;
constexpr uint8_t kVector = kFirstVector;
volatile unsigned g_count;
volatile unsigned g_presses;

void OnSci(uint8_t) {
  g_count = g_count + 1;
  if ((In16(kPm1Status) & kPowerButton) == 0) return;
  g_presses = g_presses + 1;
  Out16(kPm1Status, kPowerButton);  // written as one, cleared
}

}  // namespace

void Main() {
  if (!ExpectEqual("button", "SCI_EN", In16(kPm1Control) & 1, 1)) return;
  SetHandler(kVector, OnSci);
  RoutePin(kSci, kVector, true);
  Out16(kPm1Status, kPowerButton);
  Out16(kPm1Enable, kPowerButton);
  if (!ExpectEqual("button", "enable read back", In16(kPm1Enable) & kPowerButton, kPowerButton)) return;
  InterruptsOn();
  Print("ready\n");
  while (g_presses == 0) Pause();
  if (!ExpectEqual("button", "status after it was cleared", In16(kPm1Status) & kPowerButton, 0)) return;
  // The end of interrupt may come before the line is seen low: one more, and no press, is allowed.
  Await([] { return false; }, 100);
  if (!ExpectEqual("button", "presses", g_presses, 1)) return;
  if (Expect("button", "the interrupt comes again and again", g_count <= 2)) Pass("button");
}
