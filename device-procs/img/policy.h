// SPDX-License-Identifier: Apache-2.0
// The system calls of a bulkhead-img process behind its walls.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::img {

SyscallPolicy ImgPolicy();

}  // namespace bulkhead::img
