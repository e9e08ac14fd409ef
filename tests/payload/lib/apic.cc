// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/apic.h"

extern "C" const uint8_t payload_trampoline[], payload_trampoline_end[], trampoline_cpu[];

namespace payload {
namespace {

constexpr uint64_t kTrampoline = 0x10000;  // start.S is written for this address
constexpr uint64_t kCommandLow = kLocalApic + 0x300;
constexpr uint64_t kCommandHigh = kLocalApic + 0x310;
constexpr uint32_t kInit = 0x4500;
constexpr uint32_t kStartUp = 0x4600;

CpuMain volatile g_main;
volatile uint32_t g_started;

void Command(uint32_t apic_id, uint32_t command) {
  Store<uint32_t>(kCommandHigh, apic_id << 24);
  Store<uint32_t>(kCommandLow, command);
  while ((Load<uint32_t>(kCommandLow) & 0x1000) != 0) Pause();
}

void WriteIoApic(uint32_t index, uint32_t value) {
  Store<uint32_t>(kIoApic, index);
  Store<uint32_t>(kIoApic + 0x10, value);
}

}  // namespace

void EnableLocalApic() { Store<uint32_t>(kLocalApic + 0xF0, 0x100 | kSpuriousVector); }

void SendIpi(uint32_t apic_id, uint8_t vector) { Command(apic_id, 0x4000u | vector); }

void RoutePin(unsigned pin, uint8_t vector, bool level) {
  WriteIoApic(0x11 + 2 * pin, LocalApicId() << 24);
  WriteIoApic(0x10 + 2 * pin, vector | (level ? 0x8000u : 0));
}

void MaskPin(unsigned pin) { WriteIoApic(0x10 + 2 * pin, 0x1'0000); }

extern "C" void payload_ap_main(uint32_t cpu) {
  InterruptsOff();
  EnableLocalApic();
  CpuMain main = g_main;
  g_started = cpu;
  main(cpu);
  for (;;) Pause();
}

bool StartCpu(uint32_t apic_id, uint32_t cpu, CpuMain main) {
  const auto bytes = static_cast<size_t>(payload_trampoline_end - payload_trampoline);
  __builtin_memcpy(reinterpret_cast<void*>(kTrampoline), payload_trampoline, bytes);
  Store<uint32_t>(kTrampoline + static_cast<uint64_t>(trampoline_cpu - payload_trampoline), cpu);
  SetUpTask(cpu);
  g_main = main;
  Command(apic_id, kInit);
  const uint32_t begun = PmTimer();
  while (((PmTimer() - begun) & 0xFF'FFFF) < 36'000) Pause();  // 10 ms (Intel SDM 3A §8.4.4.1)
  Command(apic_id, kStartUp | kTrampoline >> 12);
  if (Await([cpu] { return g_started == cpu; }, 1000)) return true;
  Command(apic_id, kStartUp | kTrampoline >> 12);
  return Await([cpu] { return g_started == cpu; });
}

}  // namespace payload
