// SPDX-License-Identifier: Apache-2.0
// The walls that every child process puts around itself before it reads one untrusted byte, but for the last, the
// system call filter (ipc/syscall_policy.h) and Landlock (ipc/landlock.h). This file knows no process kind. Main
// thread, once.
#pragma once

#include <sys/resource.h>

#include <initializer_list>
#include <string>

#include "ipc/result.h"

namespace bulkhead {

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
// The same but for these, where it has them.
void KeepCapabilities(std::initializer_list<unsigned> kept);

// Makes the heap this large now, once and for all: from then on the allocator makes no system call. What is not used
// costs no memory. A sanitizer's allocator keeps its own ways.
void ReserveHeap(size_t bytes);

// Fixes resource limits, and forbids core dumps and, unless asked not to, tracing and /proc access by other processes
// of the same user. Once set-up is done.
enum class Tracing { kForbidden, kAllowed };
void LimitProcess(std::initializer_list<ResourceLimit> limits, Tracing tracing = Tracing::kForbidden);

}  // namespace bulkhead
