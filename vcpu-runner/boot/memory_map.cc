// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/boot/memory_map.h"

#include <algorithm>

#include "ipc/platform.h"

namespace bulkhead::runner {

uint64_t LowRamSize(const Machine& machine) { return std::min(machine.memory_bytes, platform::kLowRamLimit); }

std::vector<MapEntry> GuestMemoryMap(const Machine& machine) {
  std::vector<MapEntry> map{
      {0, kLowRamEnd, MemoryType::kRam},
      {kLowRamEnd, kAcpiBase.value - kLowRamEnd, MemoryType::kReserved},
      {kAcpiBase.value, kAcpiSize, MemoryType::kAcpi},
      {kKernelBase, LowRamSize(machine) - kKernelBase, MemoryType::kRam},
      // Linux uses ECAM only where the map reserves it (PCI Firmware 3.2 §4.1.2).
      {platform::kEcamBase, platform::kEcamSize, MemoryType::kReserved},
  };
  if (machine.memory_bytes > platform::kLowRamLimit) {
    map.push_back({platform::kHighRamBase, machine.memory_bytes - platform::kLowRamLimit, MemoryType::kRam});
  }
  return map;
}

}  // namespace bulkhead::runner
