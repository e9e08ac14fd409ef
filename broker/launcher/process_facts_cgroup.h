// SPDX-License-Identifier: Apache-2.0
// The cgroup (version 2) of another process and the limits set there. Launcher, main thread.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>

namespace bulkhead::launcher {

struct CgroupFacts {
  std::string path;                           // from where this command's cgroup namespace begins; empty: unknown
  std::map<std::string, std::string> limits;  // "memory.max" -> "67108864"; those that the host's controllers have
};

inline constexpr const char* kCgroupLimits[] = {"memory.max", "memory.swap.max", "cpu.max", "pids.max", "io.max"};

CgroupFacts ReadCgroupFacts(pid_t pid);

}  // namespace bulkhead::launcher
