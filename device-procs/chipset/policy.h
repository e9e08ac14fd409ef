// SPDX-License-Identifier: Apache-2.0
// What the chipset process may do after lock-down.
#pragma once

#include "ipc/syscall_policy.h"

namespace bulkhead::chipset {

SyscallPolicy ChipsetPolicy();

}  // namespace bulkhead::chipset
