// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/payload.h"

namespace payload {
namespace {

constexpr uint16_t kDebugConsole = 0x402;
constexpr uint16_t kSerial = 0x3F8;
constexpr uint16_t kPm1aControl = 0x604;
constexpr uint16_t kPmTimerPort = 0x608;
constexpr uint8_t kTransmitterEmpty = 0x20;

bool g_mirror;

void PutCharacter(char c) {
  Out8(kDebugConsole, static_cast<uint8_t>(c));
  if (!g_mirror) return;
  while ((In8(kSerial + 5) & kTransmitterEmpty) == 0) Pause();
  Out8(kSerial, static_cast<uint8_t>(c));
}

const char* CommandLine() { return reinterpret_cast<const char*>(uint64_t{Load<uint32_t>(ZeroPage() + 0x228)}); }

// The text after "name=" or null.
const char* Find(const char* name) {
  const char* at = CommandLine();
  while (*at != 0) {
    while (*at == ' ') ++at;
    const char* wanted = name;
    while (*wanted != 0 && *at == *wanted) ++at, ++wanted;
    if (*wanted == 0 && *at == '=') return at + 1;
    while (*at != 0 && *at != ' ') ++at;
  }
  return nullptr;
}

}  // namespace

void MirrorToSerial(bool mirror) { g_mirror = mirror; }

void Print(const char* text) {
  for (; *text != 0; ++text) PutCharacter(*text);
}

void PrintNumber(uint64_t value) {
  char digits[21];
  char* at = digits + sizeof digits - 1;
  *at = 0;
  do {
    *--at = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  Print(at);
}

void PrintHex(uint64_t value) {
  char digits[19];
  char* at = digits + sizeof digits - 1;
  *at = 0;
  do {
    *--at = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value != 0);
  *--at = 'x';
  *--at = '0';
  Print(at);
}

void Pass(const char* name) { PrintLine("PASS ", name); }

bool Fail(const char* name, const char* why) {
  PrintLine("FAIL ", name, ": ", why);
  return false;
}

bool Expect(const char* name, const char* why, bool condition) { return condition || Fail(name, why); }

bool ExpectEqual(const char* name, const char* why, uint64_t got, uint64_t expected) {
  if (got == expected) return true;
  Print("FAIL ");
  Print(name);
  Print(": ");
  Print(why);
  Print(": got ");
  PrintHex(got);
  Print(", expected ");
  PrintHex(expected);
  Print("\n");
  return false;
}

void PowerOff() {
  for (;;) Out16(kPm1aControl, 5 << 10 | 1 << 13);  // SLP_TYP of \_S5, SLP_EN
}

void Done() {
  Print("DONE\n");
  PowerOff();
}

bool TextEquals(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

bool TextParameter(const char* name, char* value, size_t size) {
  const char* at = Find(name);
  if (at == nullptr || size == 0) return false;
  size_t used = 0;
  for (; at[used] != 0 && at[used] != ' ' && used + 1 < size; ++used) value[used] = at[used];
  value[used] = 0;
  return true;
}

uint64_t Parameter(const char* name, uint64_t otherwise) {
  const char* at = Find(name);
  return at == nullptr ? otherwise : TakeNumber(&at);
}

uint64_t TakeNumber(const char** text) {
  uint64_t value = 0;
  while (**text == ',') ++*text;
  for (; **text >= '0' && **text <= '9'; ++*text) value = value * 10 + static_cast<uint64_t>(**text - '0');
  return value;
}

uint32_t PmTimer() { return In32(kPmTimerPort) & 0xFF'FFFF; }

}  // namespace payload
