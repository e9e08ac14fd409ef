// SPDX-License-Identifier: Apache-2.0
// Landlock (Documentation/userspace-api/landlock.rst): paths that a process may not use even where its other walls
// failed. It belongs to a thread and those it makes: so the main thread, before any other is made. Needs no_new_privs.
#pragma once

#include <cstdint>
#include <vector>

#include "ipc/result.h"

namespace bulkhead {

struct PathRight {
  int directory;    // with everything beneath it
  uint64_t access;  // LANDLOCK_ACCESS_FS_*
};

enum class LandlockScope { kAll, kSignalsAllowed, kConnectionsAllowed };

// Denies every access to files by path, but for `rights`, and TCP, abstract sockets and signals to processes outside,
// as far as the kernel knows these; of TCP and signals not what `scope` says. Where connections are allowed no port can
// be bound to by name still. False where the kernel has no Landlock or it is switched off.
bool DenyPaths(const std::vector<PathRight>& rights = {}, LandlockScope scope = LandlockScope::kAll);

}  // namespace bulkhead
