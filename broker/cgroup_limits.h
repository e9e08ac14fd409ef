// SPDX-License-Identifier: Apache-2.0
// What a VM's cgroups are limited to: generous enough that no guest of the given memory meets a limit, tight enough
// that a process which an attacker owns takes nothing from other VMs. Broker, main thread. The settings are checked.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "broker/vm_settings.h"

namespace bulkhead::broker {

struct CgroupLimit {
  std::string file;  // "memory.max"
  std::string value;
  bool required;  // else kernels may lack the file
};

struct CgroupLeaf {
  std::string name;  // of its process
  std::vector<CgroupLimit> limits;
};

struct CgroupPlan {
  std::string vm;
  std::vector<CgroupLimit> limits;  // of all its processes together
  std::vector<CgroupLeaf> leaves;
  bool asked_for = false;  // the user named a limit: no VM without it
};

// Throws FatalError on a limit that this VM cannot have.
CgroupPlan PlanCgroup(const VmSettings& settings);

// The disk, as "8:0", that reads and writes of a file go to; none if its file system is on none (tmpfs, NFS) or on
// several (btrfs).
std::optional<std::string> FindIoDevice(int fd);

}  // namespace bulkhead::broker
