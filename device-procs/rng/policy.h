// SPDX-License-Identifier: Apache-2.0
// What the rng process may do after lock-down.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::device {

SyscallPolicy RngPolicy();

}  // namespace bulkhead::device
