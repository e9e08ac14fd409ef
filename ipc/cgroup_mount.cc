// SPDX-License-Identifier: Apache-2.0
#include "ipc/cgroup_mount.h"

#include <sstream>

namespace bulkhead {

std::string FindCgroupMount(const std::string& mountinfo) {
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    // proc_pid_mountinfo(5): id, parent, device, root, mount point
    std::istringstream fields(line);
    std::string skipped;
    std::string mount;
    fields >> skipped >> skipped >> skipped >> skipped >> mount;
    return mount;
  }
  return "";
}

std::string FindCgroupPath(const std::string& cgroups) {
  std::istringstream lines(cgroups);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("0::")) return line.substr(3);
  }
  return "";
}

}  // namespace bulkhead
