// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/policy.h"

#include <liburing.h>
#include <sys/syscall.h>

#include "device-procs/common/runtime.h"

namespace bulkhead::device {

SyscallPolicy DiskPolicy() {
  SyscallPolicy policy = RuntimePolicy();
  // All file I/O and all waiting of the queue threads. What may be submitted the rings themselves restrict; they were
  // set up before, and neither io_uring_setup nor io_uring_register is there to make another or change these.
  policy.Allow(SYS_io_uring_enter, "file I/O by the restricted rings; the queue threads wait here",
               {MaskedEquals(3, ~uint64_t{IORING_ENTER_GETEVENTS}, 0)});
  return policy;
}

}  // namespace bulkhead::device
