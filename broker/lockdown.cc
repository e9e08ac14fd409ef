// SPDX-License-Identifier: Apache-2.0
#include "broker/lockdown.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "ipc/sandbox.h"
#include "ipc/start_up_memory.h"

namespace bulkhead::broker {
namespace {

constexpr rlim_t kMaxDescriptors = 4096;
constexpr size_t kHeapBytes = size_t{64} << 20;

}  // namespace

SyscallPolicy BrokerPolicy() {
  SyscallPolicy policy;
  policy.Allow(SYS_epoll_wait, "the event loop sleeps here");
  policy.Allow(SYS_epoll_ctl, "connections that come and go");
  policy.Allow(SYS_accept4, "control and console sockets");
  policy.Allow(SYS_getsockopt, "who connects there");
  policy.Allow(SYS_recvmsg, "RPC of the launcher");
  policy.Allow(SYS_sendmsg, "RPC: connections handed to a console");
  policy.Allow(SYS_read, "RPC of children and control sockets, their logs");
  policy.Allow(SYS_write, "this process's log, the event loop");
  policy.Allow(SYS_writev, "RPC");
  policy.Allow(SYS_close, "connections and children that are gone");
  policy.Allow(SYS_fcntl, "descriptors to hand on", {Equals(1, F_DUPFD_CLOEXEC)});
  policy.AllowIoctl(FIONBIO, "the mode of a new connection");
  policy.Allow(SYS_waitid, "how a child ended");
  policy.Allow(SYS_pidfd_send_signal, "ending children");
  policy.AllowIoctl(SECCOMP_IOCTL_NOTIF_RECV, "which forbidden system call a child made");
  policy.Allow(SYS_unlinkat, "the VM's control socket and cgroups; Landlock leaves nothing else to remove");
  policy.Allow(SYS_getpid, "reports of this VM");
  policy.Allow(SYS_futex, "locks of the C++ library");
  policy.Allow(SYS_membarrier, "dirty logs are switched on: see DirtyLog::SwitchOn",
               {Equals(0, MEMBARRIER_CMD_GLOBAL_EXPEDITED)});
  policy.Allow(SYS_exit_group, "the end");
  policy.Allow(SYS_clock_gettime, "where the vDSO has no fast clock");
  AllowForgetting(policy);
  return policy;
}

Lockdown LockDown(const std::vector<PathRight>& rights) {
  DropCapabilities();
  Lockdown done;
  // Signals must reach the children, which are no part of this process's Landlock domain.
  done.has_landlock = DenyPaths(rights, LandlockScope::kSignalsAllowed);
  ReserveHeap(kHeapBytes);
  LimitProcess({{RLIMIT_NOFILE, kMaxDescriptors}}, Tracing::kAllowed);
  BrokerPolicy().Install(OnViolation::kKill);
  return done;
}

}  // namespace bulkhead::broker
