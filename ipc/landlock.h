// SPDX-License-Identifier: Apache-2.0
// Landlock (Documentation/userspace-api/landlock.rst): paths that a process may not use even where its other walls
// failed. It belongs to a thread and those it makes: so the main thread, before any other is made. Needs no_new_privs.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "ipc/result.h"

namespace bulkhead {

struct PathRight {
  int directory;    // with everything beneath it
  uint64_t access;  // LANDLOCK_ACCESS_FS_*
};

// Denies every access to files by path, TCP, abstract sockets and signals to processes outside, as far as the kernel
// knows these, but for `rights`. False where the kernel has no Landlock or it is switched off.
bool DenyPaths(std::initializer_list<PathRight> rights = {});

}  // namespace bulkhead
