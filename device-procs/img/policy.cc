// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/policy.h"

#include <liburing.h>
#include <sys/syscall.h>

namespace bulkhead::img {

SyscallPolicy ImgPolicy() {
  SyscallPolicy policy;
  policy.Allow(SYS_epoll_wait, "the RPC event loop sleeps here");
  policy.Allow(SYS_recvmsg, "RPC");
  policy.Allow(SYS_writev, "RPC");
  policy.Allow(SYS_read, "eventfd: the worker thread's news");
  policy.Allow(SYS_write, "eventfds: news and commands; the log");
  policy.Allow(SYS_futex, "the threads' locks");
  policy.Allow(SYS_close, "descriptors that came with RPC messages; the filter's listener once it is reported");
  policy.Allow(SYS_exit_group, "the end, with the broker");
  policy.Allow(SYS_clock_gettime, "where the vDSO has no fast clock");
  policy.Allow(SYS_lseek, "where a raw image has data and where holes");
  policy.Allow(SYS_io_uring_enter, "file I/O by the restricted ring; the worker thread waits here",
               {MaskedEquals(3, ~uint64_t{IORING_ENTER_GETEVENTS}, 0)});
  return policy;
}

}  // namespace bulkhead::img
