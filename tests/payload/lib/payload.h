// SPDX-License-Identifier: Apache-2.0
// What every payload guest has: ports, memory, output, results, command line, interrupts. main() runs at CPL
// 3 with interrupts off; handlers run at CPL 0 on the processor's own stack.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace payload {

inline constexpr unsigned kMaxCpus = 64;

// Ports.
inline void Out8(uint16_t port, uint8_t value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
inline void Out16(uint16_t port, uint16_t value) { asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
inline void Out32(uint16_t port, uint32_t value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
inline uint8_t In8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint16_t In16(uint16_t port) {
  uint16_t value;
  asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint32_t In32(uint16_t port) {
  uint32_t value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

// Memory and its devices: exactly one access of T's width.
template <typename T>
T Load(uint64_t address) {
  T value;
  asm volatile("mov %1, %0" : "=r"(value) : "m"(*reinterpret_cast<volatile T*>(address)) : "memory");
  return value;
}
template <typename T>
void Store(uint64_t address, T value) {
  asm volatile("mov %1, %0" : "=m"(*reinterpret_cast<volatile T*>(address)) : "r"(value) : "memory");
}
inline void Pause() { asm volatile("pause" ::: "memory"); }
inline uint64_t Tsc() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
  return uint64_t{high} << 32 | low;
}

// Output, to the debug console and, where asked for, to the first serial port.
void MirrorToSerial(bool mirror);
void Print(const char* text);
void PrintNumber(uint64_t value);
void PrintHex(uint64_t value);

// Prints each argument: text or a number.
inline void PrintOne(const char* text) { Print(text); }
inline void PrintOne(uint64_t value) { PrintNumber(value); }
template <typename... Args>
void PrintLine(Args... args) {
  (PrintOne(args), ...);
  Print("\n");
}

// Results. A name is passed once, or failed, and its first failure ends what it stands for.
void Pass(const char* name);
bool Fail(const char* name, const char* why);
// "FAIL name: why: got 0x.., expected 0x.." unless equal.
bool ExpectEqual(const char* name, const char* why, uint64_t got, uint64_t expected);
bool Expect(const char* name, const char* why, bool condition);
// Prints the last line and turns the machine off.
[[noreturn]] void Done();
[[noreturn]] void PowerOff();

// The command line's "name=value".
bool TextParameter(const char* name, char* value, size_t size);
uint64_t Parameter(const char* name, uint64_t otherwise);
// The next number of a list with commas, which is taken from its beginning.
uint64_t TakeNumber(const char** text);
bool TextEquals(const char* a, const char* b);

// The zero page of the Linux boot protocol; where PVH was used, one that has the command line and ACPI's root.
uint64_t ZeroPage();

// Makes [address, address + bytes) reachable above the 4 GiB that always are.
void MapHigh(uint64_t address, uint64_t bytes);

// Time, by the ACPI PM timer (3.579545 MHz).
uint32_t PmTimer();
// Spins until the condition holds; false after that many milliseconds, which is long: it is only ever reached
// by a machine that is broken.
inline constexpr uint32_t kPatienceMs = 30'000;
template <typename Condition>
bool Await(Condition condition, uint32_t milliseconds = kPatienceMs) {
  uint64_t waited = 0;
  uint32_t last = PmTimer();
  for (;;) {
    for (unsigned spin = 0; spin < 20'000; ++spin) {
      if (condition()) return true;
      Pause();
    }
    const uint32_t now = PmTimer();
    waited += (now - last) & 0xFF'FFFF;
    last = now;
    if (waited > uint64_t{milliseconds} * 3580) return false;
  }
}

// The same for what measures, which no access to a device may disturb: false after a minute or so.
inline constexpr uint64_t kPatienceCycles = 200'000'000'000;
template <typename Condition>
bool AwaitUndisturbed(Condition condition) {
  const uint64_t begun = Tsc();
  while (!condition()) {
    if (Tsc() - begun > kPatienceCycles) return false;
    Pause();
  }
  return true;
}

// So that who reads the output can take note of its own figures before more happens: as many cycles as pause= says.
void PauseForReader();

// Interrupts. On and off by the task priority register, since sti and cli are not for CPL 3 everywhere.
using Handler = void (*)(uint8_t vector);
inline constexpr uint8_t kFirstVector = 0x40;  // first one free for payloads
void SetHandler(uint8_t vector, Handler handler);
void InterruptsOn();
void InterruptsOff();
// Runs a function at CPL 0 by an interrupt the processor sends to itself.
void RunAtCpl0(void (*function)());
// Halts for good.
[[noreturn]] void Sleep();

// Run with the processor's number on each further processor (see smp.h).
using CpuMain = void (*)(uint32_t cpu);

}  // namespace payload

// A payload's own code.
void Main();

// In a payload that other VMMs run too: has it entered by PVH (Xen's docs/misc/pvh.pandoc).
#define PAYLOAD_PVH                                     \
  asm(".pushsection .note.pvh, \"a\", @note\n"          \
      ".balign 4\n"                                     \
      ".long 4, 4, 18\n" /* XEN_ELFNOTE_PHYS32_ENTRY */ \
      ".asciz \"Xen\"\n"                                \
      ".long payload_pvh_start\n"                       \
      ".popsection")
