// SPDX-License-Identifier: Apache-2.0
// The real-time clock (MC146818A): a time that can be, and goes on; its periodic interrupt at IRQ 8.
#include "tests/payload/lib/apic.h"

using namespace payload;

namespace {

constexpr unsigned kIrq = 8;
constexpr uint8_t kVector = kFirstVector;
constexpr uint8_t kSeconds = 0x00, kMinutes = 0x02, kHours = 0x04, kDay = 0x07, kMonth = 0x08, kYear = 0x09,
                  kCentury = 0x32;
constexpr uint8_t kRegisterA = 0x0A, kRegisterB = 0x0B, kRegisterC = 0x0C;
constexpr uint8_t kUpdating = 0x80, kPeriodic = 0x40, kBinary = 0x04, k24Hours = 0x02;
volatile unsigned g_interrupts;
volatile uint8_t g_flags;

uint8_t Read(uint8_t index) {
  Out8(0x70, index);
  return In8(0x71);
}
void Write(uint8_t index, uint8_t value) {
  Out8(0x70, index);
  Out8(0x71, value);
}

unsigned Field(uint8_t index) {
  const unsigned value = Read(index);
  return (Read(kRegisterB) & kBinary) != 0 ? value : (value >> 4) * 10 + (value & 15);
}

void Time() {
  if (!Expect("rtc-time", "always updating", Await([] { return (Read(kRegisterA) & kUpdating) == 0; }))) return;
  const unsigned year = Field(kCentury) * 100 + Field(kYear);
  const unsigned month = Field(kMonth), day = Field(kDay), hour = Field(kHours), minute = Field(kMinutes);
  const unsigned second = Field(kSeconds);
  PrintLine("time ", uint64_t{year}, "-", uint64_t{month}, "-", uint64_t{day}, " ", uint64_t{hour}, ":",
            uint64_t{minute}, ":", uint64_t{second});
  if (!Expect("rtc-time", "not in 24 hours", (Read(kRegisterB) & k24Hours) != 0)) return;
  if (!Expect("rtc-time", "year", year >= 2024 && year < 2100)) return;
  if (!Expect("rtc-time", "month or day", month >= 1 && month <= 12 && day >= 1 && day <= 31)) return;
  if (!Expect("rtc-time", "hour, minute or second", hour < 24 && minute < 60 && second < 60)) return;
  if (Expect("rtc-time", "stands still", Await([second] { return Field(kSeconds) != second; }))) Pass("rtc-time");
}

void OnClock(uint8_t) {
  g_flags = g_flags | Read(kRegisterC);  // reading lets the line fall
  g_interrupts = g_interrupts + 1;
}

void Periodic() {
  SetHandler(kVector, OnClock);
  RoutePin(kIrq, kVector, false);
  Write(kRegisterA, (Read(kRegisterA) & 0x70) | 0x0A);  // 64 Hz
  Write(kRegisterB, Read(kRegisterB) | kPeriodic);
  Read(kRegisterC);
  InterruptsOn();
  if (!Expect("rtc-periodic", "fewer than 8", Await([] { return g_interrupts >= 8; }))) return;
  InterruptsOff();
  Write(kRegisterB, Read(kRegisterB) & ~kPeriodic);
  if (ExpectEqual("rtc-periodic", "flags", g_flags & 0xC0, 0xC0)) Pass("rtc-periodic");
}

}  // namespace

void Main() {
  Time();
  Periodic();
}
