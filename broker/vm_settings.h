// SPDX-License-Identifier: Apache-2.0
// A VM's configuration as the broker keeps it: checked values and its own descriptors. Made once from the launcher's
// message, which is hostile. Main thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "broker/device_plan.h"

namespace bulkhead::broker {

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
  std::string runtime_dir;
  std::vector<std::unique_ptr<DevicePlan>> devices;
};

// Throws FatalError on a value that no launcher of ours would send.
VmSettings TakeSettings(control::VmConfig::Reader config, kj::WaitScope& wait);

}  // namespace bulkhead::broker
