// SPDX-License-Identifier: Apache-2.0
// One vCPU on KVM. Run on its own thread; Interrupt from any.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <vector>

#include "ipc/fd.h"
#include "vcpu-runner/cpu/hypervisor.h"

namespace bulkhead::runner {

class KvmVcpu final : public Vcpu {
 public:
  static Result<std::unique_ptr<Vcpu>> Create(OwnFd vcpu, size_t run_bytes, std::vector<kvm_cpuid_entry2> cpuid);
  ~KvmVcpu() override;

  Result<void> SetStartState(const StartState& state) override;
  void Bind() override;
  Exit Run() override;
  void Interrupt() override;

 private:
  KvmVcpu(OwnFd vcpu, kvm_run* run, size_t run_bytes) : vcpu_(std::move(vcpu)), run_(run), run_bytes_(run_bytes) {}
  void EnableCaches();
  Exit DecodeExit();
  FailureExit DescribeInternalError() const;

  OwnFd vcpu_;
  kvm_run* run_;  // shared with the kernel only
  size_t run_bytes_;
  std::atomic<int> process_id_ = 0;
  std::atomic<int> thread_id_ = 0;  // the thread in Run, for the signal that interrupts it
};

}  // namespace bulkhead::runner
