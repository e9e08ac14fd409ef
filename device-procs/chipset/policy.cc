// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/policy.h"

#include <sys/syscall.h>

#include "device-procs/common/runtime.h"
#include "ipc/counted_output.h"

namespace bulkhead::chipset {

SyscallPolicy ChipsetPolicy() {
  SyscallPolicy policy = device::RuntimePolicy();
  policy.Allow(SYS_timerfd_settime, "RTC and PM timer interrupts; the timers exist already");
  AllowCountedOutput(policy);
  return policy;
}

}  // namespace bulkhead::chipset
