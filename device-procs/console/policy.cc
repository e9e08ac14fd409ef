// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/policy.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "device-procs/common/runtime.h"
#include "ipc/counted_output.h"

namespace bulkhead::device {

SyscallPolicy ConsolePolicy() {
  SyscallPolicy policy = RuntimePolicy();
  policy.Allow(SYS_fcntl, "taking a new connection from its capability", {Equals(1, F_DUPFD_CLOEXEC)});
  AllowCountedOutput(policy);
  return policy;
}

}  // namespace bulkhead::device
