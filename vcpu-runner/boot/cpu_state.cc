// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/boot/cpu_state.h"

#include <array>

#include "vcpu-runner/boot/memory_map.h"

namespace bulkhead::runner {
namespace {

// The boot protocol wants __BOOT_CS and __BOOT_DS at these selectors.
constexpr uint16_t kCodeSelector = 0x10;
constexpr uint16_t kDataSelector = 0x18;
constexpr uint16_t kTaskSelector = 0x20;

constexpr uint64_t kCr0ProtectionEnable = 1;
constexpr uint64_t kCr0ExtensionType = 1 << 4;
constexpr uint64_t kCr0Paging = 1u << 31;
constexpr uint64_t kCr4Pae = 1 << 5;
constexpr uint64_t kEferLongMode = 1 << 8;
constexpr uint64_t kEferLongModeActive = 1 << 10;

constexpr uint64_t kPresentWritable = 3;
constexpr uint64_t kLargePage = 1 << 7;
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kLargePageBytes = 2 << 20;
constexpr uint64_t kEntries = 512;

Result<void> WriteGdt(const GuestMemory& memory, bool long_mode) {
  const std::array<uint64_t, 5> gdt{
      0,
      0,
      uint64_t{long_mode ? 0x00AF'9B00'0000'FFFFu : 0x00CF'9B00'0000'FFFFu},  // code
      0x00CF'9300'0000'FFFF,                                                  // data
      0x0000'8B00'0000'0067,                                                  // TSS, never used
  };
  return memory.WriteObject(kGdtAddress, gdt);
}

// Identity for the first 4 GiB, in 2 MiB pages: not every KVM has 1 GiB ones.
Result<void> WritePageTables(const GuestMemory& memory) {
  const auto table = [](uint64_t index) { return kPageTables + index * kPageBytes; };
  constexpr uint64_t kDirectories = 4;
  auto result = memory.WriteObject(table(0), table(1).value | kPresentWritable);
  for (uint64_t directory = 0; directory < kDirectories && result.ok(); ++directory) {
    const Gpa address = table(2 + directory);
    result = memory.WriteObject(table(1) + directory * sizeof(uint64_t), address.value | kPresentWritable);
    if (!result.ok()) break;
    std::array<uint64_t, kEntries> entries;
    for (uint64_t i = 0; i < kEntries; ++i) {
      entries[i] = (directory * kEntries + i) * kLargePageBytes | kPresentWritable | kLargePage;
    }
    result = memory.WriteObject(address, entries);
  }
  return result;
}

StartState FlatState(bool long_mode) {
  StartState state;
  state.rsp = kStackTop.value;
  state.cr0 = kCr0ProtectionEnable | kCr0ExtensionType;
  state.code = {.limit = 0xFFFF'FFFF,
                .selector = kCodeSelector,
                .type = 0xB,
                .long_mode = long_mode,
                .default_big = !long_mode,
                .granular = true};
  state.data = {.limit = 0xFFFF'FFFF, .selector = kDataSelector, .type = 0x3, .default_big = true, .granular = true};
  state.task = {.limit = 0x67, .selector = kTaskSelector, .type = 0xB, .code_or_data = false};
  state.gdt = {.base = kGdtAddress.value, .limit = 5 * 8 - 1};
  return state;
}

}  // namespace

Result<StartState> LongModeState(const GuestMemory& memory, uint64_t entry, Gpa boot_params) {
  if (auto result = WriteGdt(memory, true); !result.ok()) return result.error();
  if (auto result = WritePageTables(memory); !result.ok()) return result.error();
  StartState state = FlatState(true);
  state.rip = entry;
  state.rsi = boot_params.value;
  state.cr0 |= kCr0Paging;
  state.cr3 = kPageTables.value;
  state.cr4 = kCr4Pae;
  state.efer = kEferLongMode | kEferLongModeActive;
  return state;
}

Result<StartState> ProtectedModeState(const GuestMemory& memory, uint32_t entry, Gpa rsi, Gpa rbx) {
  if (auto result = WriteGdt(memory, false); !result.ok()) return result.error();
  StartState state = FlatState(false);
  state.rip = entry;
  state.rsi = rsi.value;
  state.rbx = rbx.value;
  return state;
}

}  // namespace bulkhead::runner
