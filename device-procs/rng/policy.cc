// SPDX-License-Identifier: Apache-2.0
#include "device-procs/rng/policy.h"

#include <sys/syscall.h>

#include "device-procs/common/runtime.h"

namespace bulkhead::device {

SyscallPolicy RngPolicy() {
  SyscallPolicy policy = RuntimePolicy();
  policy.Allow(SYS_getrandom, "what this process is for");
  return policy;
}

}  // namespace bulkhead::device
