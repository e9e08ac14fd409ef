// SPDX-License-Identifier: Apache-2.0
// Vm and Vcpu on Linux KVM (Documentation/virt/kvm/api.rst). The VM belongs to the process that created it, so the
// runner creates it itself from the /dev/kvm descriptor the broker opened, and then closes that.
#pragma once

#include <linux/kvm.h>

#include <mutex>

#include "ipc/fd.h"
#include "vcpu-runner/cpu/hypervisor.h"

namespace bulkhead::runner {

// Creates a VM with in-kernel interrupt controllers and PIT. `kvm_fd` must stay open until the last CreateVcpu.
Result<std::unique_ptr<Vm>> CreateKvmVm(int kvm_fd);

// Installs the (empty) handler of the signal by which Interrupt reaches a vCPU thread. Once, before any vCPU runs.
void InstallInterruptSignal();

class KvmVm final : public Vm {
 public:
  // `clears_log`: KVM_GET_DIRTY_LOG leaves the log as it is, and KVM_CLEAR_DIRTY_LOG clears it.
  KvmVm(OwnFd vm, std::vector<kvm_cpuid_entry2> supported_cpuid, size_t run_bytes, bool clears_log);

  Result<void> AddMemory(const GuestMemory& memory) override;
  Result<std::unique_ptr<Vcpu>> CreateVcpu(uint32_t index, uint32_t vcpu_count) override;
  Result<void> ConnectLine(uint32_t gsi, int signal_fd, int resample_fd) override;
  Result<uint32_t> ConnectMessage(int signal_fd) override;
  Result<void> SetMessageRoute(uint32_t gsi, uint64_t address, uint32_t data) override;
  Result<void> ConnectKick(Gpa address, int kick_fd) override;
  Result<void> DisconnectKick(Gpa address, int kick_fd) override;
  Result<void> SetDirtyLogging(bool on) override;
  Result<std::span<const uint64_t>> TakeDirtyPages(size_t region) override;

 private:
  Result<void> Kick(Gpa address, int kick_fd, uint32_t flags);
  Result<void> SetRegion(const kvm_userspace_memory_region& region);
  void AddPinRoutes();

  OwnFd vm_;
  std::vector<kvm_cpuid_entry2> supported_cpuid_;
  size_t run_bytes_;
  const bool clears_log_;
  std::vector<kvm_userspace_memory_region> regions_;
  // For the log of one region. Not touched before it is used: it costs address space until then.
  std::unique_ptr<uint64_t[]> dirty_pages_;
  std::mutex routes_mutex_;
  std::vector<kvm_irq_routing_entry> routes_;
  uint32_t next_gsi_;
};

}  // namespace bulkhead::runner
