// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/kvm/cpuid.h"

#include <sys/ioctl.h>

#include <bit>

#include "vcpu-runner/kvm/kvm_table.h"

namespace bulkhead::runner {
namespace {

constexpr uint32_t kMaxEntries = 256;

uint32_t Replace(uint32_t word, unsigned low_bit, unsigned bits, uint32_t value) {
  const uint32_t mask = ((uint32_t{1} << bits) - 1) << low_bit;
  return (word & ~mask) | ((value << low_bit) & mask);
}

struct Topology {
  uint32_t apic_id;
  uint32_t cores;
  uint32_t core_bits;  // width of the core number in an APIC id
};

// Leaf 0xB and 0x1F: one thread a core, all cores in one package (Intel SDM vol. 2 CPUID; AMD APM vol. 3 E.3.10).
void SetExtendedTopology(kvm_cpuid_entry2& entry, const Topology& topology) {
  enum LevelType : uint32_t { kNone = 0, kThread = 1, kCore = 2 };
  const uint32_t level = entry.index;
  const uint32_t type = level == 0 ? kThread : level == 1 ? kCore : kNone;
  entry.eax = type == kCore ? topology.core_bits : 0;
  entry.ebx = type == kThread ? 1 : type == kCore ? topology.cores : 0;
  entry.ecx = type << 8 | level;
  entry.edx = topology.apic_id;
}

void Personalize(kvm_cpuid_entry2& entry, const Topology& topology) {
  switch (entry.function) {
    case 0x1:
      entry.ebx = Replace(entry.ebx, 24, 8, topology.apic_id);
      entry.ebx = Replace(entry.ebx, 16, 8, topology.cores);
      entry.edx = Replace(entry.edx, 28, 1, topology.cores > 1);  // HTT: EBX 23..16 is valid
      entry.ecx |= 1u << 31;                                      // a hypervisor is present
      entry.ecx |= 1u << 24;                                      // TSC deadline timer, by the in-kernel APIC
      break;
    case 0x4: {
      if ((entry.eax & 0x1F) == 0) break;  // no more caches
      const uint32_t cache_level = (entry.eax >> 5) & 7;
      entry.eax = Replace(entry.eax, 26, 6, (uint32_t{1} << topology.core_bits) - 1);
      entry.eax = Replace(entry.eax, 14, 12, cache_level >= 3 ? (uint32_t{1} << topology.core_bits) - 1 : 0);
      break;
    }
    case 0xB:
    case 0x1F:
      SetExtendedTopology(entry, topology);
      break;
    case 0x80000008:  // AMD: number of cores, and the bits of the APIC id that count them
      entry.ecx = Replace(entry.ecx, 0, 8, topology.cores - 1);
      entry.ecx = Replace(entry.ecx, 12, 4, topology.core_bits);
      break;
    case 0x8000001D: {  // AMD cache topology
      if ((entry.eax & 0x1F) == 0) break;
      const uint32_t cache_level = (entry.eax >> 5) & 7;
      entry.eax = Replace(entry.eax, 14, 12, cache_level >= 3 ? topology.cores - 1 : 0);
      break;
    }
    case 0x8000001E:  // AMD: extended APIC id, core id with one thread, node 0
      entry.eax = topology.apic_id;
      entry.ebx = topology.apic_id;
      entry.ecx = 0;
      break;
    default:
      break;
  }
}

}  // namespace

Result<std::vector<kvm_cpuid_entry2>> SupportedCpuid(int kvm_fd) {
  KvmTable<kvm_cpuid_entry2> table(kMaxEntries);
  if (::ioctl(kvm_fd, kGetSupportedCpuid, table.argument()) != 0) return ErrnoError(errno, "KVM_GET_SUPPORTED_CPUID");
  return table.Entries();
}

std::vector<kvm_cpuid_entry2> CpuidFor(std::vector<kvm_cpuid_entry2> supported, uint32_t index, uint32_t vcpu_count) {
  const Topology topology{
      .apic_id = index, .cores = vcpu_count, .core_bits = static_cast<uint32_t>(std::bit_width(vcpu_count - 1))};
  for (kvm_cpuid_entry2& entry : supported) Personalize(entry, topology);
  return supported;
}

Result<void> SetCpuid(int vcpu_fd, const std::vector<kvm_cpuid_entry2>& entries) {
  KvmTable<kvm_cpuid_entry2> table(entries);
  if (::ioctl(vcpu_fd, kSetCpuid2, table.argument()) == 0) return {};
  return ErrnoError(errno, "KVM_SET_CPUID2");
}

}  // namespace bulkhead::runner
