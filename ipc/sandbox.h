// SPDX-License-Identifier: Apache-2.0
// The sandbox mechanism that every child process enters before it reads one untrusted byte. What a process may still
// do afterwards is its own policy, in a file beside its main; this file knows no process kind. Main thread, once.
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "ipc/result.h"

namespace bulkhead {

// A condition on one system call argument.
struct SyscallArgument {
  enum class Test { kEquals, kMaskedEquals };
  unsigned index = 0;  // 0..5
  Test test = Test::kEquals;
  uint64_t value = 0;
  uint64_t mask = ~uint64_t{0};
};
SyscallArgument Equals(unsigned index, uint64_t value);
// (argument & mask) == value.
SyscallArgument MaskedEquals(unsigned index, uint64_t mask, uint64_t value);

// An allowlist of system calls; anything else kills the process. Rules for one call are alternatives.
class SyscallPolicy {
 public:
  struct Rule {
    int number;
    std::vector<SyscallArgument> arguments;
  };

  void Allow(int number, std::initializer_list<SyscallArgument> arguments = {});
  // ioctl with exactly this request number.
  void AllowIoctl(unsigned long request);
  // Anonymous or shared mappings without PROT_EXEC, for allocators.
  void AllowDataMappings();

  const std::vector<Rule>& rules() const { return rules_; }

 private:
  std::vector<Rule> rules_;
};

struct ResourceLimit {
  __rlimit_resource resource;
  rlim_t value;
};

// Leaves the host's file system for an empty, read-only root. Needs the fresh user and mount namespaces that the
// broker starts children in; called first, before anything is received.
void EnterEmptyRoot();

// Renames the process as process lists show it: at most 15 bytes.
void SetProcessName(const std::string& name);

// Gives up every capability for good and forbids new privileges. Both belong to a thread: so this comes before any
// other thread is made, right after the empty root, the last thing that needed a capability.
void DropCapabilities();

// Fixes resource limits, and forbids core dumps and tracing by the same user. Once set-up is done.
void LimitProcess(std::initializer_list<ResourceLimit> limits);

// Installs the policy on all threads of the process. Last step.
void InstallPolicy(const SyscallPolicy& policy);

}  // namespace bulkhead
