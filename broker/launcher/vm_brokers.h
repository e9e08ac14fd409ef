// SPDX-License-Identifier: Apache-2.0
// The broker of one boot of a VM, and those that take over when it crashes or is upgraded: the VM's processes go on
// meanwhile. Beside the broker, this process has the spawner's socket, with which they end. Launcher, main thread.
#pragma once

#include <optional>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/options.h"
#include "broker/launcher/vm_resources.h"
#include "ipc/restraint.h"

namespace bulkhead::launcher {

class VmBrokers {
 public:
  // Starts the first one. The references outlive this.
  VmBrokers(kj::AsyncIoContext& io, const RunOptions& options, const RuntimeDir& directory,
            const VmResources& resources);
  ~VmBrokers() { Finish(); }

  BrokerProcess& current() { return *broker_; }
  // What the first one gave, from when on another can take over.
  void Keep(OwnFd spawner) { spawner_ = std::move(spawner); }
  // When the current one has hung up: starts another, which takes over. Throws FatalError where there is to be none.
  control::VmControl::Client TakeOver();
  // Ends all that is left of the boot, and returns when it is gone: what it was given is closed then.
  void Finish();

 private:
  void Start() { broker_.emplace(io_, "bulkhead:" + options_.name + " broker"); }

  kj::AsyncIoContext& io_;
  const RunOptions& options_;
  const RuntimeDir& directory_;
  const VmResources& resources_;
  Restraint restraint_;
  OwnFd spawner_;
  std::optional<BrokerProcess> broker_;
};

}  // namespace bulkhead::launcher
