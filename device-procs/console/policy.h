// SPDX-License-Identifier: Apache-2.0
// What the console process may do after lock-down.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::device {

SyscallPolicy ConsolePolicy();

}  // namespace bulkhead::device
