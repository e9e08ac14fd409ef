// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/policy.h"

#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "device-procs/common/runtime.h"

namespace bulkhead::device {

SyscallPolicy NetPolicy() {
  constexpr uint64_t kOffloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  SyscallPolicy policy = RuntimePolicy();
  // Packets to the tap are the runtime's writev.
  policy.Allow(SYS_readv, "packets from the tap");
  policy.Allow(SYS_timerfd_settime, "interrupts that the driver wants later; the timers exist already");
  policy.Allow(SYS_ioctl, "TUNSETOFFLOAD: what the driver takes over from the tap",
               {Equals(1, TUNSETOFFLOAD), MaskedEquals(2, ~kOffloads, 0)});
  policy.AllowIoctl(TUNSETQUEUE, "TUNSETQUEUE: which of its queues the tap spreads packets over");
  return policy;
}

}  // namespace bulkhead::device
