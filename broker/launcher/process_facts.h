// SPDX-License-Identifier: Apache-2.0
// What the kernel, not the program, says of a process: read from /proc from outside. What this user may not see of it
// is absent. The process may be hostile: the kernel gives numbers, and names that only who made it chose, except for
// thread names, which are checked before they are shown. Launcher, main thread; nothing here throws or waits.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "broker/launcher/process_facts_cgroup.h"
#include "broker/launcher/process_facts_descriptors.h"
#include "broker/launcher/process_facts_memory.h"

namespace bulkhead::launcher {

// Capabilities, no_new_privs and seccomp belong to a thread, not to its process.
struct ThreadFacts {
  pid_t tid = 0;
  std::string name;
  uint64_t permitted = 0;
  uint64_t effective = 0;
  uint64_t inheritable = 0;
  uint64_t bounding = 0;
  uint64_t ambient = 0;
  bool no_new_privs = false;
  unsigned seccomp_mode = 0;     // 2: filtered
  unsigned seccomp_filters = 0;  // how many
};

struct NamespaceFact {
  std::string kind;  // "user", "pid", ...
  std::string id;    // "user:[4026531837]"
  bool own = false;  // not the one of this command
};

struct RootFacts {
  bool only_mount = false;  // nothing else is mounted in its mount namespace
  bool read_only = false;
  std::optional<bool> empty;
};

// What the broker says that it made a process for; all else here the kernel says.
struct ProcessGrants {
  unsigned files = 0;   // of the host
  unsigned queues = 0;  // virtqueues
};

struct ProcessFacts {
  std::string name;  // "disk0"
  ProcessGrants granted;
  pid_t pid = 0;
  pid_t parent = 0;
  std::vector<pid_t> children;
  bool exists = false;
  std::array<uid_t, 4> uids{};  // real, effective, saved, file system; as this command sees them
  std::array<gid_t, 4> gids{};
  std::vector<gid_t> groups;
  std::vector<ThreadFacts> threads;
  std::optional<std::string> executable;
  std::optional<std::vector<NamespaceFact>> namespaces;
  RootFacts root;
  std::map<std::string, std::string> hard_limits;  // "Max core file size" -> "0"
  std::optional<std::vector<Descriptor>> descriptors;
  std::optional<MemoryFacts> memory;
  CgroupFacts cgroup;
};

inline constexpr const char* kNamespaceKinds[] = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"};

ProcessFacts ReadProcessFacts(const std::string& name, pid_t pid);

// The union of the capability sets of all its threads but for the bounding sets, which only limit what an exec could
// give: nothing, with no_new_privs.
uint64_t HeldCapabilities(const ProcessFacts& facts);

}  // namespace bulkhead::launcher
