// SPDX-License-Identifier: Apache-2.0
// A tiny VM that runs one piece of guest code: set up, run until it says done or fails. Probe process, main thread; a
// second vCPU on a thread of its own. The code is ours, but what KVM makes of it is what is being found out.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "ipc/guest_memory.h"
#include "vcpu-runner/cpu/hypervisor.h"

namespace bulkhead::probe {

// What ended a run.
struct Outcome {
  bool done = false;    // the code wrote to the port it was to write to
  std::string failure;  // else why
  int64_t elapsed_ns = 0;
};

class ProbeGuest {
 public:
  // Throws FatalError where KVM cannot make such a VM.
  ProbeGuest(int kvm_fd, std::span<const std::byte> code, uint32_t vcpu_count = 1);

  runner::Vm& vm() { return *vm_; }
  const GuestMemory& memory() { return memory_; }
  // Runs vCPU `index` until it writes to `port`.
  Outcome RunUntil(uint32_t index, uint16_t port);

 private:
  void WriteTables();

  GuestMemory memory_;
  std::unique_ptr<runner::Vm> vm_;
  std::vector<std::unique_ptr<runner::Vcpu>> vcpus_;
};

}  // namespace bulkhead::probe
