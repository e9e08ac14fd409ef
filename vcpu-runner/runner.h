// SPDX-License-Identifier: Apache-2.0
// The vcpu-runner put together from its grants: VM, routes, vCPU threads. Main thread; set-up happens before
// lock-down and reads nothing hostile, Load and what follows after it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "ipc/broker_link.h"
#include "ipc/control.capnp.h"
#include "ipc/mailbox.h"
#include "vcpu-runner/boot/boot.h"
#include "vcpu-runner/vcpu_thread.h"

namespace bulkhead::runner {

class Runner {
 public:
  // Creates the VM and all threads. Throws FatalError.
  Runner(control::RunnerGrants::Reader grants, BrokerLink& broker, Mailbox& mailbox, kj::WaitScope& wait);

  // Loads the guest and lets it run. Reads the kernel file: after lock-down.
  Result<void> Load();
  void Pause();
  void Resume();
  // The broker knows this device process to be gone.
  void MarkDeviceDead(size_t index);
  // Has KVM log what the vCPUs write, or not; and moves what it logged since the last time to the dirty log.
  Result<void> LogWrites(bool on);
  Result<void> CollectWrites();

 private:
  void AddDevice(size_t index, control::DeviceWiring::Reader wiring, control::RunnerGrants::Reader grants,
                 kj::WaitScope& wait);
  void Tell(std::function<kj::Promise<void>(control::RunnerHost::Client)> call);
  void ReportStop(const Exit& exit);
  void ReportDeviceLate(size_t index);
  void ReportDeviceFailure(size_t index, const std::string& reason);

  BrokerLink& broker_;
  Mailbox& mailbox_;
  GuestMemory memory_;
  std::optional<DirtyLog> dirty_log_;  // none: the broker has no use for it
  Machine machine_;
  BootSources sources_;
  OwnFd kernel_;
  OwnFd initrd_;
  std::unique_ptr<Vm> vm_;
  std::unique_ptr<Router> router_;
  std::vector<std::unique_ptr<DeviceChannel>> devices_;
  std::vector<OwnFd> lines_;
  Gate gate_;
  std::vector<std::unique_ptr<VcpuThread>> vcpus_;
};

}  // namespace bulkhead::runner
