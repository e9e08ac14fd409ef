// SPDX-License-Identifier: Apache-2.0
// Which system calls a process may make once it is locked down, as data: each process kind has one policy, beside its
// main. From it come the filter that the kernel enforces and the listing that reviewers and tests read.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "ipc/fd.h"

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

// What becomes of a call that no rule allows. Either way it is not made and the process ends.
enum class OnViolation {
  kKill,    // by the kernel, at once
  kReport,  // the call waits for whoever has the filter's listener, who reports and kills
};

// An allowlist. Rules for one call are alternatives.
class SyscallPolicy {
 public:
  struct Rule {
    int number;
    std::string reason;
    std::vector<SyscallArgument> arguments;
  };

  void Allow(int number, std::string reason, std::initializer_list<SyscallArgument> arguments = {});
  // ioctl with exactly this request number.
  void AllowIoctl(unsigned long request, std::string reason);

  const std::vector<Rule>& rules() const { return rules_; }
  // One line per rule, "name(argument 1 == 0xae80)  # reason", sorted.
  std::string Listing() const;
  // The classic BPF program, as the kernel gets it: struct sock_filter after struct sock_filter.
  std::string Program(OnViolation on_violation) const;
  // Installs the filter on all threads of this process; needs no_new_privs. With kReport the listener.
  OwnFd Install(OnViolation on_violation) const;

 private:
  std::vector<Rule> rules_;
};

// The options --policy, which prints the listing, --policy=bpf for the program when violations are reported, and
// --policy=bpf-kill when they are not; throws FatalError for another. The value is main's.
int PrintPolicy(const std::string& option, const SyscallPolicy& policy);

// "openat", or "system call 999" for a number that has no name.
std::string SyscallName(int number);

}  // namespace bulkhead
