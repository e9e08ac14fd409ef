// SPDX-License-Identifier: Apache-2.0
// What a locked-down disk process may ask of the kernel.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::device {

SyscallPolicy DiskPolicy();

}  // namespace bulkhead::device
