// SPDX-License-Identifier: Apache-2.0
// What CPUID tells a vCPU: the host's supported leaves with the vCPU's own identity and a topology of one package with
// a core per vCPU. Main thread, during set-up.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

#include "ipc/result.h"

namespace bulkhead::runner {

Result<std::vector<kvm_cpuid_entry2>> SupportedCpuid(int kvm_fd);
std::vector<kvm_cpuid_entry2> CpuidFor(std::vector<kvm_cpuid_entry2> supported, uint32_t index, uint32_t vcpu_count);
Result<void> SetCpuid(int vcpu_fd, const std::vector<kvm_cpuid_entry2>& entries);

}  // namespace bulkhead::runner
