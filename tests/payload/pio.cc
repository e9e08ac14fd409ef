// SPDX-License-Identifier: Apache-2.0
// Ports of all kinds and widths, string instructions, configuration by CF8/CFC, PM timer, CMOS.
#include "tests/payload/lib/pci.h"

using namespace payload;

namespace {

constexpr uint16_t kScratch = 0x3FF;
constexpr uint16_t kUnclaimed = 0x3E0;  // four ports where a fourth serial port could be
constexpr uint16_t kConfigAddress = 0xCF8;
constexpr uint16_t kConfigData = 0xCFC;

void Scratch() {
  for (unsigned value = 0; value < 256; value += 17) {
    Out8(kScratch, static_cast<uint8_t>(value));
    if (!ExpectEqual("scratch", "read back", In8(kScratch), value)) return;
  }
  Pass("scratch");
}

void Strings() {
  static uint8_t bytes[64];
  static uint8_t read[64];
  for (unsigned i = 0; i < sizeof bytes; ++i) bytes[i] = static_cast<uint8_t>(3 * i + 1);
  const uint8_t* from = bytes;
  uint64_t count = sizeof bytes;
  asm volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(kScratch) : "memory");
  if (!ExpectEqual("rep", "count after outs", count, 0)) return;
  if (!ExpectEqual("rep", "source after outs", static_cast<uint64_t>(from - bytes), sizeof bytes)) return;
  uint8_t* to = read;
  count = sizeof read;
  asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(kScratch) : "memory");
  if (!ExpectEqual("rep", "count after ins", count, 0)) return;
  for (const uint8_t byte : read) {
    if (!ExpectEqual("rep", "last byte written, read repeatedly", byte, bytes[sizeof bytes - 1])) return;
  }
  Pass("rep");
}

void Unclaimed() {
  Out8(kUnclaimed, 0);
  Out16(kUnclaimed, 0);
  Out32(kUnclaimed, 0);
  if (ExpectEqual("unclaimed", "byte", In8(kUnclaimed), 0xFF) &&
      ExpectEqual("unclaimed", "word", In16(kUnclaimed), 0xFFFF) &&
      ExpectEqual("unclaimed", "dword", In32(kUnclaimed), 0xFFFF'FFFF)) {
    Pass("unclaimed");
  }
}

// Each byte and word of the host bridge's first registers is that part of the dword.
void HostBridge() {
  for (unsigned offset = 0; offset < 0x40; offset += 4) {
    Out32(kConfigAddress, ConfigAddress(0, offset));
    if (!ExpectEqual("cf8", "address read back", In32(kConfigAddress), ConfigAddress(0, offset))) return;
    const uint32_t whole = In32(kConfigData);
    if (offset == 0 && !Expect("cf8", "no host bridge", whole != 0xFFFF'FFFF && whole != 0)) return;
    if (!ExpectEqual("cf8", "ECAM agrees", whole, Load<uint32_t>(EcamAddress(0, offset)))) return;
    for (unsigned byte = 0; byte < 4; ++byte) {
      const auto port = static_cast<uint16_t>(kConfigData + byte);
      if (!ExpectEqual("cf8", "byte", In8(port), whole >> 8 * byte & 0xFF)) return;
      if (byte % 2 != 0) continue;
      if (!ExpectEqual("cf8", "word", In16(port), whole >> 8 * byte & 0xFFFF)) return;
    }
  }
  Out32(kConfigAddress, ConfigAddress(31, 0));
  if (!ExpectEqual("cf8", "absent function", In32(kConfigData), 0xFFFF'FFFF)) return;
  Out32(kConfigAddress, ConfigAddress(0, 0) & 0x7FFF'FFFF);
  if (!ExpectEqual("cf8", "enable bit clear", In32(kConfigData), 0xFFFF'FFFF)) return;
  Pass("cf8");
}

// 24 bits that wrap after 4.7 s: the difference of two reads is small, and time passes.
void Timer() {
  uint32_t last = PmTimer();
  uint32_t total = 0;
  for (unsigned i = 0; i < 200; ++i) {
    const uint32_t now = PmTimer();
    const uint32_t passed = (now - last) & 0xFF'FFFF;
    if (!Expect("pmtimer", "went backwards", passed < 0x80'0000)) return;
    total += passed;
    last = now;
  }
  if (Expect("pmtimer", "stands still", total > 0)) Pass("pmtimer");
}

void Cmos() {
  const auto read = [](uint8_t index) {
    Out8(0x70, index);
    return In8(0x71);
  };
  if (!ExpectEqual("cmos", "register D: battery is good", read(0x0D) & 0x80, 0x80)) return;
  Out8(0x70, 0x40);
  Out8(0x71, 0xA5);
  if (!ExpectEqual("cmos", "RAM read back", read(0x40), 0xA5)) return;
  if (ExpectEqual("cmos", "odd widths", In16(0x70) >> 8, 0xA5)) Pass("cmos");
}

}  // namespace

void Main() {
  Scratch();
  Strings();
  Unclaimed();
  HostBridge();
  Timer();
  Cmos();
}
