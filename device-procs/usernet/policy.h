// SPDX-License-Identifier: Apache-2.0
// What a locked-down usernet process may ask of the kernel.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::usernet {

SyscallPolicy UserNetPolicy();

}  // namespace bulkhead::usernet
