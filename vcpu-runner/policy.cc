// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/policy.h"

#include <linux/kvm.h>
#include <sys/syscall.h>

#include "ipc/start_up_memory.h"
#include "vcpu-runner/kvm/kvm_table.h"

namespace bulkhead::runner {

namespace {

constexpr uint64_t kOwnPid = 1;  // in its own pid namespace

}  // namespace

SyscallPolicy RunnerPolicy() {
  SyscallPolicy policy;
  // The guest's processor. Nothing that creates a VM, a vCPU or a device.
  policy.AllowIoctl(KVM_RUN, "what this process is for");
  policy.AllowIoctl(KVM_GET_SREGS, "start state of vCPU 0");
  policy.AllowIoctl(KVM_SET_SREGS, "start state of vCPU 0");
  policy.AllowIoctl(KVM_GET_REGS, "saying where an instruction could not be emulated");
  policy.AllowIoctl(KVM_SET_REGS, "start state of vCPU 0");
  policy.AllowIoctl(KVM_IOEVENTFD, "the guest moves a BAR, and the kicks with it");
  policy.AllowIoctl(kSetGsiRouting, "the guest programs an MSI-X vector");
  policy.AllowIoctl(KVM_SET_USER_MEMORY_REGION,
                    "the dirty log is switched; gives the guest nothing but what is mapped here");
  policy.AllowIoctl(KVM_GET_DIRTY_LOG, "what the vCPUs wrote");
  policy.AllowIoctl(KVM_CLEAR_DIRTY_LOG, "what the vCPUs wrote is logged anew");
  policy.Allow(SYS_pread64, "kernel and initrd");
  policy.Allow(SYS_lseek, "their sizes");
  policy.Allow(SYS_newfstatat, "their kind and size");
  policy.Allow(SYS_futex, "exit rings, the gate");
  policy.Allow(SYS_epoll_wait, "control plane");
  policy.Allow(SYS_epoll_ctl, "another broker's connection");
  policy.Allow(SYS_recvmsg, "RPC; another broker's connection");
  policy.Allow(SYS_writev, "RPC");
  policy.Allow(SYS_read, "mailbox");
  policy.Allow(SYS_write, "doorbells, mailbox, log");
  policy.Allow(SYS_close, "the end of RPC capabilities");
  policy.Allow(SYS_tgkill, "interrupting a vCPU of this process", {Equals(0, kOwnPid)});
  policy.Allow(SYS_rt_sigreturn, "the end of that signal's handler");
  policy.Allow(SYS_exit_group, "the end");
  policy.Allow(SYS_clock_gettime, "where the vDSO has no fast clock");
  AllowForgetting(policy);
  return policy;
}

}  // namespace bulkhead::runner
