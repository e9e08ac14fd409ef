// SPDX-License-Identifier: Apache-2.0
// Where this process may make cgroups: root beneath the root of the tree, an ordinary user beneath the nearest cgroup
// above the own one that was delegated to them. Broker, main thread, before lock-down. The tree is the kernel's, and
// in an ordinary user's part of it that user's: nothing read here is believed further than it is theirs.
#pragma once

#include <set>
#include <string>

#include "ipc/fd.h"

namespace bulkhead::broker {

struct CgroupPlace {
  OwnFd directory;                    // "bulkhead", the parent of all VMs' cgroups
  std::set<std::string> controllers;  // that can limit what is made there; memory and pids are among them
};

struct CgroupTree {
  std::string mount;     // "/sys/fs/cgroup"; empty: there is none
  std::string own_path;  // of this process, below the mount: "/user.slice/a.scope"
  bool is_root = false;
};
CgroupTree ReadCgroupTree();

// Makes the directory and enables the controllers on the way down to it. No process is moved: where one stands in the
// way (cgroup-v2.rst, "No Internal Process Constraint"), that is the error, a line that says what is missing.
Result<CgroupPlace> FindCgroupPlace(const CgroupTree& tree);

// A small file in a directory, whole; empty where it cannot be read.
std::string ReadFileAt(int directory, const std::string& name);
// One write, since that is one command to the kernel.
Result<void> WriteFileAt(int directory, const std::string& name, const std::string& text);

}  // namespace bulkhead::broker
