// SPDX-License-Identifier: Apache-2.0
// The kernel objects that join a device process to the runner for one boot: exit channel, doorbell, kicks, interrupts,
// lines. Made from a plan by the broker, handed to both ends. Main thread.
#pragma once

#include <functional>
#include <vector>

#include "broker/device_plan.h"
#include "broker/kept_fds.h"
#include "ipc/control.capnp.h"

namespace bulkhead::broker {

class Wiring {
 public:
  explicit Wiring(const DevicePlan& plan);  // throws FatalError
  // One that another broker has made of the same plan; takes from `kept` what AddTo adds. Throws FatalError.
  Wiring(const DevicePlan& plan, KeptFds& kept);

  // What both ends are told.
  void Describe(control::DeviceWiring::Builder out) const;
  void AddTo(std::vector<int>& fds) const;

 private:
  using Make = std::function<OwnFd()>;
  Wiring(const DevicePlan& plan, const Make& memory, const Make& event);

  struct Line {
    OwnFd signal;
    OwnFd resample;  // invalid for an edge
  };
  struct Function {
    std::vector<OwnFd> kicks;
    std::vector<OwnFd> interrupts;
  };

  const DevicePlan& plan_;
  OwnFd channel_;  // invalid: the guest does not reach the process
  OwnFd doorbell_;
  std::vector<Function> functions_;
  std::vector<Line> lines_;
};

}  // namespace bulkhead::broker
