// SPDX-License-Identifier: Apache-2.0
// What each process of a running VM is allowed to be, and how a running one differs from that: `bulkhead inspect
// --verify`. The table of kinds is the one place to change when a process is meant to hold more or less. Launcher, main
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "broker/launcher/process_facts.h"

namespace bulkhead::launcher {

// At most fixed + per_device * (device processes) + per_vcpu * (vCPUs) + per_queue * (queues: a disk's or a network
// interface's own, for the vcpu-runner those of all of them) + per_file * (files that it was given) descriptors of a
// kind.
struct FdBound {
  FdKind kind;
  unsigned fixed = 0;
  unsigned per_device = 0;
  unsigned per_vcpu = 0;
  unsigned per_queue = 0;
  unsigned per_file = 0;
};

// At most fixed + per_vcpu * (vCPUs) + per_queue * (its queues) threads, those included that the kernel makes for it.
struct TaskBound {
  unsigned fixed = 6;
  unsigned per_vcpu = 0;
  unsigned per_queue = 0;
};

enum class GuestMemoryUse { kNever, kOptional, kAlways };

struct Expectation {
  std::string_view kind;       // "disk", for "disk0", "disk1", ...
  std::string executable;      // file name
  bool caged = true;           // own namespaces and an empty root; all but the broker and its spawner
  bool filtered = true;        // system calls; all but the spawner
  uint64_t capabilities = 0;   // bits of those that root's may have; an ordinary user's has none
  bool keeps_network = false;  // the broker's network namespace instead of one of its own
  GuestMemoryUse guest_memory = GuestMemoryUse::kNever;
  TaskBound tasks = {};                       // where it has a cgroup
  bool all_exit_rings = false;                // not only that of its own name
  unsigned files = 0;                         // different files and block devices; ~0: any number
  bool counts_files = false;                  // no more of them than the broker says it gave it
  uint64_t own_memory = uint64_t{128} << 20;  // where it has a cgroup, beside guest memory; bytes
  std::vector<FdBound> bounds;                // of kinds not named here: none
};

// The kind of a process by its name in the VM; nullptr for a name that no kind has.
const Expectation* FindExpectation(std::string_view process);

// A VM as its broker describes it, with the facts of its processes, the broker's first.
struct VmFacts {
  std::string name;
  uint32_t vcpus = 0;
  uint64_t memory_bytes = 0;
  std::vector<ProcessFacts> processes;
};

struct Findings {
  std::vector<std::string> differences;  // "disk0: ...", a line each
  std::vector<std::string> unseen;       // kinds of facts that this user may not see, each once
};

// All but the system call filters, which are expectations_filter.h's. `executables`: where the helpers are installed.
Findings CompareWithExpectations(const VmFacts& vm, const std::string& executables);

}  // namespace bulkhead::launcher
