// SPDX-License-Identifier: Apache-2.0
// What an attacker who owns a process would try from it. Each attempt is honest work that succeeds where nothing stands
// in its way; the jail tests show that first.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>

namespace bulkhead::jail {

// Things outside that an attempt is aimed at.
struct Targets {
  pid_t victim = 0;    // a process of the same user that waits to be harmed, by its number on the host
  std::string file;    // a file with "secret" in it, readable and writable for that user
  std::string socket;  // a UNIX socket that accepts connections
};

struct Attempt {
  const char* name;
  // True if it got what it wanted.
  bool (*make)(const Targets& targets);
  // The wall behind the system call filter: what stops the attempt where the filter is gone. Null: nothing but the
  // filter, and what it gets is of no use by itself (own memory, own threads).
  const char* second_wall;
  // Only root can make it outside, so that only root can show that it works there.
  bool needs_root = false;
  // Only where the host has it does it work outside.
  const char* needs_device = nullptr;
};

std::span<const Attempt> Attempts();
const Attempt* FindAttempt(const std::string& name);

}  // namespace bulkhead::jail
