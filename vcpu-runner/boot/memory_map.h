// SPDX-License-Identifier: Apache-2.0
// Where the loader puts its own structures in low guest memory, and the memory map it tells the guest. Main thread.
#pragma once

#include <cstdint>
#include <vector>

#include "ipc/guest_memory.h"
#include "vcpu-runner/boot/boot.h"

namespace bulkhead::runner {

// Low memory below the kernel. All of it is usable RAM to the guest but for the ACPI area, so that it is reclaimed once
// the kernel has read it.
inline constexpr Gpa kGdtAddress{0x500};
inline constexpr Gpa kStartInfoAddress{0x6000};   // PVH hvm_start_info, module list, memory map
inline constexpr Gpa kBootParamsAddress{0x7000};  // the zero page, 4 KiB
inline constexpr Gpa kStackTop{0x8FF0};
inline constexpr Gpa kPageTables{0x9000};  // PML4, PDPT, four page directories
inline constexpr Gpa kCommandLineAddress{0x20000};
inline constexpr uint64_t kMaxCommandLine = 0x10000;
inline constexpr uint64_t kLowRamEnd = 0x9FC00;  // the extended BIOS data area begins here on every PC
inline constexpr Gpa kAcpiBase{0xE0000};         // where ACPI 6.4 §5.2.5.1 has systems look for the root pointer
inline constexpr uint64_t kAcpiSize = 0x20000;
inline constexpr uint64_t kKernelBase = 0x100000;

enum class MemoryType : uint32_t { kRam = 1, kReserved = 2, kAcpi = 3 };

struct MapEntry {
  uint64_t base;
  uint64_t size_bytes;
  MemoryType type;
};

// The E820 map, ascending.
std::vector<MapEntry> GuestMemoryMap(const Machine& machine);

// End of RAM below 4 GiB.
uint64_t LowRamSize(const Machine& machine);

}  // namespace bulkhead::runner
