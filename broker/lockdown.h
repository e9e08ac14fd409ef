// SPDX-License-Identifier: Apache-2.0
// The broker's own diet: once all children run, it gives up what it only needed to start them. Main thread, once.
#pragma once

#include <vector>

#include "ipc/fd.h"
#include "ipc/landlock.h"
#include "ipc/syscall_policy.h"

namespace bulkhead::broker {

// What the broker of a running VM may still do, each with its reason.
SyscallPolicy BrokerPolicy();

struct Lockdown {
  bool has_landlock = false;
};
// No capability, no new privileges, no core dump, no path but for `rights`, and the policy.
Lockdown LockDown(const std::vector<PathRight>& rights);

}  // namespace bulkhead::broker
