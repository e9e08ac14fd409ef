// SPDX-License-Identifier: Apache-2.0
// What a locked-down net process may ask of the kernel.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::device {

SyscallPolicy NetPolicy();

}  // namespace bulkhead::device
