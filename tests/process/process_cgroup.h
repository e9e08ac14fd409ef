// SPDX-License-Identifier: Apache-2.0
// The cgroup that one process of a VM has for itself, from outside: a test holds the process there, as a host does that
// has no time for it, or takes its memory away.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace bulkhead::test {

class ProcessCgroup {
 public:
  // None where the process has none of its own that this user may change.
  static std::optional<ProcessCgroup> Of(pid_t pid);

  // All that is in it stands still, without a signal, until it is let go. False if that cannot be had.
  bool Hold() const;
  void LetGo() const;
  // Has less memory than anything, and so is killed by the kernel; then the limit is what it was. How many processes
  // that killed.
  uint64_t RunOutOfMemory() const;

 private:
  explicit ProcessCgroup(std::string path) : path_(std::move(path)) {}
  bool Write(const char* file, const std::string& value) const;
  uint64_t Count(const char* file, const std::string& word) const;

  std::string path_;
};

}  // namespace bulkhead::test
