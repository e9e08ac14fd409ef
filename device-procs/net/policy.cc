// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/policy.h"

#include <linux/if_tun.h>
#define VIRTIO_RING_NO_LEGACY  // that part of the kernel's header is C only
#include <linux/vhost.h>
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
  // No descriptor but /dev/vhost-net has these. Owner, guest memory and kicks are set before lock-down.
  policy.AllowIoctl(VHOST_SET_FEATURES, "VHOST_SET_FEATURES: how the driver uses its queues");
  policy.AllowIoctl(VHOST_SET_VRING_NUM, "VHOST_SET_VRING_NUM: a queue's size");
  policy.AllowIoctl(VHOST_SET_VRING_BASE, "VHOST_SET_VRING_BASE: where to go on in a queue");
  policy.AllowIoctl(VHOST_SET_VRING_ADDR, "VHOST_SET_VRING_ADDR: where a queue lies in this process");
  policy.AllowIoctl(VHOST_SET_VRING_CALL, "VHOST_SET_VRING_CALL: the eventfd of a queue's vector");
  policy.AllowIoctl(VHOST_NET_SET_BACKEND, "VHOST_NET_SET_BACKEND: the kernel begins to serve a queue, or ends");
  policy.AllowIoctl(VHOST_GET_VRING_BASE, "VHOST_GET_VRING_BASE: how far the kernel came");
  return policy;
}

}  // namespace bulkhead::device
