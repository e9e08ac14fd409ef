// SPDX-License-Identifier: Apache-2.0
// Local APIC, I/O APIC and further processors.
#pragma once

#include "tests/payload/lib/payload.h"

namespace payload {

inline constexpr uint64_t kLocalApic = 0xFEE0'0000;
inline constexpr uint64_t kIoApic = 0xFEC0'0000;
inline constexpr uint8_t kSpuriousVector = 0xFF;

void EnableLocalApic();
inline uint32_t LocalApicId() { return Load<uint32_t>(kLocalApic + 0x20) >> 24; }
inline void EndOfInterrupt() { Store<uint32_t>(kLocalApic + 0xB0, 0); }
void SendIpi(uint32_t apic_id, uint8_t vector);

// Routes a pin to a vector of this processor, not masked.
void RoutePin(unsigned pin, uint8_t vector, bool level);
void MaskPin(unsigned pin);

// Starts the processor with that APIC id as number `cpu` (from 1), and waits until it runs `main` at CPL 3.
bool StartCpu(uint32_t apic_id, uint32_t cpu, CpuMain main);

// Implemented by the runtime: the task segment that a processor needs.
void SetUpTask(uint32_t cpu);

}  // namespace payload
