// SPDX-License-Identifier: Apache-2.0
// What the vcpu-runner may ask of the kernel after lock-down. Main thread, once.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::runner {

SyscallPolicy RunnerPolicy();

}  // namespace bulkhead::runner
