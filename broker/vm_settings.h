// SPDX-License-Identifier: Apache-2.0
// A VM's configuration as the broker keeps it: checked values and its own descriptors. Made once from the launcher's
// message, which is hostile. Main thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "broker/child_uids.h"
#include "broker/device_plan.h"

namespace bulkhead::broker {

// What the user limits the VM's processes to, all together; 0: the default.
struct VmLimits {
  uint64_t memory_bytes = 0;
  uint32_t cpu_thousandths = 0;
  uint32_t tasks = 0;
  uint64_t io_bytes_per_second = 0;

  bool any() const { return memory_bytes != 0 || cpu_thousandths != 0 || tasks != 0 || io_bytes_per_second != 0; }
};

struct VmSettings {
  std::string name;
  uint64_t memory_bytes = 0;
  uint32_t vcpu_count = 0;
  OwnFd kernel;
  std::string kernel_name;
  OwnFd initrd;  // invalid: none
  std::string initrd_name;
  std::string command_line;
  bool keep_on_device_failure = false;
  int64_t exit_deadline_ns = 0;
  uint32_t device_restarts = 0;  // at most, of each device within a minute
  std::string runtime_dir;
  std::optional<UidRange> uids;  // none: the default range
  bool require_full_sandbox = false;
  VmLimits limits;
  std::vector<std::unique_ptr<DevicePlan>> devices;
};

// Throws FatalError on a value that no launcher of ours would send.
VmSettings TakeSettings(control::VmConfig::Reader config, kj::WaitScope& wait);

}  // namespace bulkhead::broker
