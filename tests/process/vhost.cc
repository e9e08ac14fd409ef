// SPDX-License-Identifier: Apache-2.0
#include "tests/process/vhost.h"

#include <unistd.h>

#include <filesystem>

#include "tests/process/harness.h"

namespace bulkhead::test {

std::string WhyNoVhost() {
  if (::geteuid() != 0) return "only root can make a tap";
  return ::access("/dev/vhost-net", R_OK | W_OK) == 0 ? "" : "this host has no /dev/vhost-net";
}

bool HasVhostThreads(pid_t pid) {
  const std::string name = "vhost-" + std::to_string(pid) + "\n";
  for (const std::string& tasks : {std::string("/proc"), "/proc/" + std::to_string(pid) + "/task"}) {
    std::error_code gone;
    for (std::filesystem::directory_iterator at(tasks, gone), end; !gone && at != end; at.increment(gone)) {
      if (ReadFile(at->path() / "comm") == name) return true;
    }
  }
  return false;
}

}  // namespace bulkhead::test
