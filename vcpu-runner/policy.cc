// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/policy.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vcpu-runner/kvm/kvm_table.h"

namespace bulkhead::runner {

SyscallPolicy RunnerPolicy() {
  SyscallPolicy policy;
  // The guest's processor. Nothing that creates a VM, a vCPU, a device or memory.
  policy.AllowIoctl(KVM_RUN);
  policy.AllowIoctl(KVM_GET_SREGS);   // start state of vCPU 0
  policy.AllowIoctl(KVM_SET_SREGS);   // start state of vCPU 0
  policy.AllowIoctl(KVM_GET_REGS);    // saying where an instruction could not be emulated
  policy.AllowIoctl(KVM_SET_REGS);    // start state of vCPU 0
  policy.AllowIoctl(KVM_IOEVENTFD);   // the guest moves a BAR, and the kicks with it
  policy.AllowIoctl(kSetGsiRouting);  // the guest programs an MSI-X vector
  policy.Allow(SYS_pread64);          // kernel and initrd
  policy.Allow(SYS_lseek);            // their sizes
  policy.Allow(SYS_newfstatat);       // their kind and size
  policy.Allow(SYS_fstat);            // the same, on other C libraries
  policy.Allow(SYS_futex);            // exit rings, the gate, allocator lock
  policy.Allow(SYS_epoll_wait);       // control plane
  policy.Allow(SYS_epoll_ctl);        // control plane
  policy.Allow(SYS_recvmsg);          // RPC
  policy.Allow(SYS_sendmsg);          // RPC
  policy.Allow(SYS_writev);           // RPC
  policy.Allow(SYS_read);             // mailbox
  policy.Allow(SYS_write);            // doorbells, mailbox, log
  policy.Allow(SYS_close);            // the end of RPC capabilities
  policy.Allow(SYS_gettid);           // the thread to interrupt
  policy.Allow(SYS_tgkill, {Equals(0, static_cast<uint64_t>(::getpid()))});  // interrupting a vCPU of this process
  policy.Allow(SYS_getpid);                                                  // the same
  policy.Allow(SYS_rt_sigreturn);                                            // the end of that signal's handler
  policy.AllowDataMappings();                                                // allocator
  policy.Allow(SYS_brk);                                                     // allocator
  policy.Allow(SYS_madvise, {Equals(2, MADV_DONTNEED)});                     // allocator, ended threads' stacks
  policy.Allow(SYS_set_robust_list);  // a new thread's first call, should it come so late
  policy.Allow(SYS_rt_sigprocmask);   // a thread's end
  policy.Allow(SYS_exit);             // a vCPU that stopped
  policy.Allow(SYS_exit_group);       // the end
  policy.Allow(SYS_clock_gettime);    // where the vDSO has no fast clock
  policy.Allow(SYS_restart_syscall);  // after SIGSTOP and SIGCONT
  return policy;
}

}  // namespace bulkhead::runner
