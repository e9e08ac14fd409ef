// SPDX-License-Identifier: Apache-2.0
// What another process has mapped. Launcher, main thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <istream>
#include <optional>
#include <string>
#include <vector>

namespace bulkhead::launcher {

struct Mapping {
  uint64_t size_bytes = 0;
  std::string rights;  // "rw-s"
  std::string name;    // "memfd:guest-web1", a path, "[heap]" or nothing
  bool memfd = false;
};

struct MemoryFacts {
  std::vector<Mapping> guest_memory;         // memfds "guest-*"
  std::vector<Mapping> exit_rings;           // memfds "exits-*"
  std::vector<Mapping> writable_executable;  // whatever can be written and executed
  uint64_t own_pss_kb = 0;                   // its share of the memory it has mapped, without guest memory
};

uint64_t GuestMemoryBytes(const MemoryFacts& memory);

// Nothing if this user may not look.
std::optional<MemoryFacts> ReadMemoryFacts(pid_t pid);

// The same from the text of /proc/PID/smaps.
MemoryFacts ParseMemoryFacts(std::istream& smaps);

}  // namespace bulkhead::launcher
