// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/probe/probe_guest.h"

#include <array>

#include "ipc/ring.h"
#include "vcpu-runner/kvm/kvm_vm.h"
#include "vcpu-runner/probe/guest_code.h"

namespace bulkhead::probe {
namespace {

using runner::Exit;
using runner::Segment;
using runner::StartState;

constexpr uint64_t kMemoryBytes = 2 * 1024 * 1024;
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kPresentWritableUser = 7;
constexpr uint64_t kLargePage = 0x80;
constexpr uint64_t kLargePageBytes = 2 * 1024 * 1024;
constexpr uint16_t kBreakpointVector = 3;
constexpr uint64_t kBreakpointHandler = kCode + 64;

GuestMemory MakeMemory() {
  const OwnFd file = OrThrow(MakeSealedMemory("probe-guest", kMemoryBytes));
  const MemoryRegion region{Gpa{0}, kMemoryBytes, 0};
  return OrThrow(GuestMemory::Map(file.get(), std::span(&region, 1)));
}

template <typename T>
void Put(const GuestMemory& memory, uint64_t address, const T& value) {
  OrThrow(memory.WriteObject(Gpa{address}, value));
}

StartState LongModeStart() {
  constexpr uint64_t kCr0 = 0x8000'0033;  // PG, NE, ET, MP, PE
  constexpr uint64_t kCr4Pae = 0x20;
  constexpr uint64_t kEferLongMode = 0x500;
  StartState state;
  state.rip = kCode;
  state.rsp = kStackTop;
  state.rsi = kScratch;
  state.cr0 = kCr0;
  state.cr3 = kPageTables;
  state.cr4 = kCr4Pae;
  state.efer = kEferLongMode;
  state.code = {.limit = 0xFFFF'FFFF, .selector = kKernelCode, .type = 0xB, .long_mode = true, .granular = true};
  state.data = {.limit = 0xFFFF'FFFF, .selector = kKernelData, .type = 0x3, .default_big = true, .granular = true};
  state.task = {.base = kTssAddress, .limit = 0x67, .selector = kTask, .type = 0xB, .code_or_data = false};
  state.gdt = {.base = kGdtAddress, .limit = 0x37};
  state.idt = {.base = kIdtAddress, .limit = 0xFFF};
  return state;
}

}  // namespace

ProbeGuest::ProbeGuest(int kvm_fd, std::span<const std::byte> code, uint32_t vcpu_count)
    : memory_(MakeMemory()), vm_(OrThrow(runner::CreateKvmVm(kvm_fd))) {
  OrThrow(vm_->AddMemory(memory_));
  for (uint32_t i = 0; i < vcpu_count; ++i) vcpus_.push_back(OrThrow(vm_->CreateVcpu(i, vcpu_count)));
  WriteTables();
  OrThrow(memory_.Write(Gpa{kCode}, code));
  OrThrow(vcpus_.front()->SetStartState(LongModeStart()));
}

void ProbeGuest::WriteTables() {
  constexpr std::array<uint64_t, 7> kGdt{
      0,
      0x00AF'9B00'0000'FFFF,  // kernel code, 64-bit
      0x00CF'9300'0000'FFFF,  // kernel data
      0x00CF'F300'0000'FFFF,  // user data
      0x00AF'FB00'0000'FFFF,  // user code, 64-bit
      0x0000'8B00'3000'0067,  // TSS at kTssAddress
      0,
  };
  Put(memory_, kGdtAddress, kGdt);

  // An interrupt gate to the breakpoint handler (Intel SDM vol. 3 §6.14.1).
  const std::array<uint64_t, 2> gate{
      (kBreakpointHandler & 0xFFFF) | uint64_t{kKernelCode} << 16 | 0x8E00ull << 32 | (kBreakpointHandler >> 16) << 48,
      0};
  Put(memory_, kIdtAddress + kBreakpointVector * sizeof gate, gate);

  // The first 2 MiB and, for the local APIC, the 2 MiB around 0xFEE00000; two page directories.
  const uint64_t low_directory = kPageTables + 2 * kPageBytes;
  const uint64_t high_directory = kPageTables + 3 * kPageBytes;
  constexpr uint64_t kApicPage = 0xFEE0'0000;
  Put(memory_, kPageTables, (kPageTables + kPageBytes) | kPresentWritableUser);
  Put(memory_, kPageTables + kPageBytes, low_directory | kPresentWritableUser);
  Put(memory_, kPageTables + kPageBytes + 3 * sizeof(uint64_t), high_directory | kPresentWritableUser);
  Put(memory_, low_directory, kPresentWritableUser | kLargePage);
  Put(memory_, high_directory + kApicPage / kLargePageBytes % 512 * sizeof(uint64_t),
      kApicPage | kPresentWritableUser | kLargePage);
}

Outcome ProbeGuest::RunUntil(uint32_t index, uint16_t port) {
  const int64_t started_ns = MonotonicNow();
  for (;;) {
    const Exit exit = vcpus_[index]->Run();
    if (const auto* pio = std::get_if<runner::PioExit>(&exit)) {
      if (pio->is_write && pio->port == port)
        return {.done = true, .failure = {}, .elapsed_ns = MonotonicNow() - started_ns};
    } else if (const auto* failure = std::get_if<runner::FailureExit>(&exit)) {
      return {.done = false, .failure = failure->line};
    } else if (std::holds_alternative<runner::ShutdownExit>(exit)) {
      return {.done = false, .failure = "the guest processor shut down"};
    } else if (std::holds_alternative<runner::MmioExit>(exit)) {
      return {.done = false, .failure = "the guest touched memory it does not have"};
    }
  }
}

}  // namespace bulkhead::probe
