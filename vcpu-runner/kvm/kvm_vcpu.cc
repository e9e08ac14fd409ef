// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/kvm/kvm_vcpu.h"

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>

#include "vcpu-runner/kvm/cpuid.h"
#include "vcpu-runner/kvm/kvm_table.h"
#include "vcpu-runner/kvm/kvm_vm.h"

namespace bulkhead::runner {
namespace {

constexpr int kInterruptSignal = SIGUSR1;
constexpr uint32_t kMsrMtrrDefaultType = 0x2FF;
constexpr uint64_t kMtrrEnabledWriteBack = (1 << 11) | 6;  // Intel SDM vol. 3 §11.11.2.1

kvm_segment ToKvm(const Segment& segment) {
  kvm_segment out{};
  out.base = segment.base;
  out.limit = segment.limit;
  out.selector = segment.selector;
  out.type = segment.type;
  out.present = segment.present;
  out.dpl = segment.dpl;
  out.db = segment.default_big;
  out.s = segment.code_or_data;
  out.l = segment.long_mode;
  out.g = segment.granular;
  return out;
}

std::string Hex(uint64_t value) {
  std::array<char, 24> text;
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(value));
  return text.data();
}

}  // namespace

void InstallInterruptSignal() {
  struct sigaction action {};
  action.sa_handler = [](int) {};  // its only work is to end KVM_RUN with EINTR
  ::sigaction(kInterruptSignal, &action, nullptr);
}

// Firmware leaves RAM cacheable on every processor, and Linux gives up its own memory types where it finds MTRRs off. A
// KVM that does not let the register be set runs guests all the same.
void KvmVcpu::EnableCaches() {
  const kvm_msr_entry memory_types{.index = kMsrMtrrDefaultType, .reserved = 0, .data = kMtrrEnabledWriteBack};
  KvmTable<kvm_msr_entry> msrs(std::span(&memory_types, 1));
  ::ioctl(vcpu_.get(), kSetMsrs, msrs.argument());
}

Result<std::unique_ptr<Vcpu>> KvmVcpu::Create(OwnFd vcpu, size_t run_bytes, std::vector<kvm_cpuid_entry2> cpuid) {
  if (auto result = SetCpuid(vcpu.get(), cpuid); !result.ok()) return result.error();
  void* run = ::mmap(nullptr, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
  if (run == MAP_FAILED) return ErrnoError(errno, "map a vCPU's run area");
  std::unique_ptr<KvmVcpu> created(new KvmVcpu(std::move(vcpu), static_cast<kvm_run*>(run), run_bytes));
  created->EnableCaches();
  return std::unique_ptr<Vcpu>(std::move(created));
}

KvmVcpu::~KvmVcpu() { ::munmap(run_, run_bytes_); }

Result<void> KvmVcpu::SetStartState(const StartState& state) {
  kvm_sregs sregs{};
  if (::ioctl(vcpu_.get(), KVM_GET_SREGS, &sregs) != 0) return ErrnoError(errno, "KVM_GET_SREGS");
  sregs.cr0 = state.cr0;
  sregs.cr3 = state.cr3;
  sregs.cr4 = state.cr4;
  sregs.efer = state.efer;
  sregs.cs = ToKvm(state.code);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = ToKvm(state.data);
  sregs.tr = ToKvm(state.task);
  sregs.gdt.base = state.gdt.base;
  sregs.gdt.limit = state.gdt.limit;
  sregs.idt.base = state.idt.base;
  sregs.idt.limit = state.idt.limit;
  if (::ioctl(vcpu_.get(), KVM_SET_SREGS, &sregs) != 0) return ErrnoError(errno, "KVM_SET_SREGS");

  kvm_regs regs{};
  regs.rip = state.rip;
  regs.rsp = state.rsp;
  regs.rbx = state.rbx;
  regs.rsi = state.rsi;
  regs.rflags = state.rflags;
  if (::ioctl(vcpu_.get(), KVM_SET_REGS, &regs) != 0) return ErrnoError(errno, "KVM_SET_REGS");
  return {};
}

void KvmVcpu::Bind() {
  process_id_ = ::getpid();
  thread_id_ = static_cast<int>(::syscall(SYS_gettid));
}

Exit KvmVcpu::Run() {
  if (::ioctl(vcpu_.get(), KVM_RUN, 0) == 0) return DecodeExit();
  if (errno == EINTR || errno == EAGAIN) {
    std::atomic_ref(run_->immediate_exit).store(0, std::memory_order_relaxed);
    return InterruptedExit{};
  }
  return FailureExit{ErrnoError(errno, "run a vCPU (KVM_RUN)").message};
}

Exit KvmVcpu::DecodeExit() {
  switch (run_->exit_reason) {
    case KVM_EXIT_IO: {
      auto* data = reinterpret_cast<std::byte*>(run_) + run_->io.data_offset;
      return PioExit{.port = run_->io.port,
                     .width = run_->io.size,
                     .is_write = run_->io.direction == KVM_EXIT_IO_OUT,
                     .data = {data, size_t{run_->io.size} * run_->io.count}};
    }
    case KVM_EXIT_MMIO:
      return MmioExit{.address = Gpa{run_->mmio.phys_addr},
                      .is_write = run_->mmio.is_write != 0,
                      .data = {reinterpret_cast<std::byte*>(run_->mmio.data), run_->mmio.len}};
    case KVM_EXIT_INTR:
      return InterruptedExit{};
    case KVM_EXIT_SHUTDOWN:
      return ShutdownExit{};
    case KVM_EXIT_SYSTEM_EVENT:
      return ShutdownExit{};
    case KVM_EXIT_FAIL_ENTRY:
      return FailureExit{"the processor refused to enter the guest (hardware reason " +
                         Hex(run_->fail_entry.hardware_entry_failure_reason) + ")"};
    case KVM_EXIT_INTERNAL_ERROR:
      return DescribeInternalError();
    default:
      return FailureExit{"KVM stopped the guest for a reason not known here (" + std::to_string(run_->exit_reason) +
                         ")"};
  }
}

FailureExit KvmVcpu::DescribeInternalError() const {
  kvm_regs regs{};
  ::ioctl(vcpu_.get(), KVM_GET_REGS, &regs);
  const std::string where = " at rip " + Hex(regs.rip);
  if (run_->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
    return FailureExit{"KVM gave up on the guest (internal error " + std::to_string(run_->internal.suberror) + ")" +
                       where};
  }
  std::string bytes;
  const auto& failure = run_->emulation_failure;
  if (run_->internal.ndata >= 1 && (failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0) {
    for (unsigned i = 0; i < failure.insn_size && i < sizeof failure.insn_bytes; ++i) {
      std::array<char, 4> text;
      std::snprintf(text.data(), text.size(), " %02x", failure.insn_bytes[i]);
      bytes += text.data();
    }
    bytes = ", bytes" + bytes;
  }
  return FailureExit{"KVM cannot emulate a guest instruction" + where + bytes +
                     ": without hardware virtualization this host runs only small guests; see `bulkhead check`"};
}

void KvmVcpu::Interrupt() {
  // The flag covers the moment before KVM_RUN, the signal the time in it.
  std::atomic_ref(run_->immediate_exit).store(1, std::memory_order_seq_cst);
  const int thread = thread_id_.load();
  if (thread != 0) ::syscall(SYS_tgkill, process_id_.load(), thread, kInterruptSignal);
}

}  // namespace bulkhead::runner
