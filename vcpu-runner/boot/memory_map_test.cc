// SPDX-License-Identifier: Apache-2.0
// RAM around the 32-bit hole, as the guest is told of it.
#include "vcpu-runner/boot/memory_map.h"

#include <gtest/gtest.h>

#include "ipc/platform.h"

namespace bulkhead::runner {
namespace {

using platform::kGiB;
using platform::kMiB;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSizes[] = {16 * kMiB,        128 * kMiB, 3 * kGiB - kPage, 3 * kGiB,
                               3 * kGiB + kPage, 6 * kGiB,   4096 * kGiB};

std::vector<MapEntry> MapOf(uint64_t memory_bytes) { return GuestMemoryMap({.memory_bytes = memory_bytes}); }

// RAM from 1 MiB up.
std::vector<std::pair<uint64_t, uint64_t>> HighRam(uint64_t memory_bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> ram;
  for (const MapEntry& entry : MapOf(memory_bytes)) {
    if (entry.type == MemoryType::kRam && entry.base != 0) ram.emplace_back(entry.base, entry.size_bytes);
  }
  return ram;
}

using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;

TEST(MemoryMap, RamEndsWhereTheHoleBeginsAndGoesOnAtFourGiB) {
  EXPECT_EQ(HighRam(128 * kMiB), (Ranges{{kMiB, 127 * kMiB}}));
  EXPECT_EQ(HighRam(3 * kGiB), (Ranges{{kMiB, 3 * kGiB - kMiB}}));
  EXPECT_EQ(HighRam(3 * kGiB + kPage), (Ranges{{kMiB, 3 * kGiB - kMiB}, {4 * kGiB, kPage}}));
  EXPECT_EQ(HighRam(6 * kGiB), (Ranges{{kMiB, 3 * kGiB - kMiB}, {4 * kGiB, 3 * kGiB}}));
}

TEST(MemoryMap, LowRamIsAtMostThreeGiB) {
  EXPECT_EQ(LowRamSize({.memory_bytes = 128 * kMiB}), 128 * kMiB);
  EXPECT_EQ(LowRamSize({.memory_bytes = 3 * kGiB}), 3 * kGiB);
  EXPECT_EQ(LowRamSize({.memory_bytes = 3 * kGiB + kPage}), 3 * kGiB);
  EXPECT_EQ(LowRamSize({.memory_bytes = 6 * kGiB}), 3 * kGiB);
}

TEST(MemoryMap, EntriesAscendAndDoNotOverlap) {
  for (uint64_t size : kSizes) {
    uint64_t next = 0;
    for (const MapEntry& entry : MapOf(size)) {
      EXPECT_GE(entry.base, next) << size;
      EXPECT_GT(entry.size_bytes, 0u) << size;
      next = entry.base + entry.size_bytes;
    }
  }
}

TEST(MemoryMap, RamOfTheMapIsRamOfTheMachine) {
  for (uint64_t size : kSizes) {
    for (const MapEntry& entry : MapOf(size)) {
      if (entry.type != MemoryType::kRam) continue;
      bool backed = false;
      for (const MemoryRegion& region : platform::RamRegions(size)) {
        backed |=
            entry.base >= region.base.value && entry.base + entry.size_bytes <= region.base.value + region.size_bytes;
      }
      EXPECT_TRUE(backed) << std::hex << entry.base << " of " << size;
    }
  }
}

TEST(MemoryMap, AllMemoryButTheFirstMiBsHoleIsUsable) {
  for (uint64_t size : kSizes) {
    uint64_t usable = 0;
    for (const MapEntry& entry : MapOf(size)) usable += entry.type == MemoryType::kRam ? entry.size_bytes : 0;
    EXPECT_EQ(usable, size - (kMiB - kLowRamEnd)) << size;
  }
}

TEST(MemoryMap, ReservesConfigurationSpaceAndKeepsTablesFromReuse) {
  for (uint64_t size : kSizes) {
    bool ecam = false, acpi = false;
    for (const MapEntry& entry : MapOf(size)) {
      ecam |= entry.base == 0xE000'0000 && entry.size_bytes == kMiB && entry.type == MemoryType::kReserved;
      acpi |= entry.base == 0xE'0000 && entry.size_bytes == 0x2'0000 && entry.type == MemoryType::kAcpi;
    }
    EXPECT_TRUE(ecam) << size;
    EXPECT_TRUE(acpi) << size;
  }
}

TEST(MemoryMap, LoaderStructuresLieApartBelowTheKernel) {
  // start, first byte beyond
  const Ranges areas{{kGdtAddress.value, kGdtAddress.value + 5 * 8},
                     {kStartInfoAddress.value, kBootParamsAddress.value},
                     {kBootParamsAddress.value, kBootParamsAddress.value + 4096},
                     {kBootParamsAddress.value + 4096, kStackTop.value},
                     {kPageTables.value, kPageTables.value + 6 * 4096},
                     {kCommandLineAddress.value, kCommandLineAddress.value + kMaxCommandLine},
                     {kLowRamEnd, kLowRamEnd},
                     {kAcpiBase.value, kAcpiBase.value + kAcpiSize},
                     {kKernelBase, kKernelBase}};
  for (size_t i = 1; i < areas.size(); ++i) EXPECT_LE(areas[i - 1].second, areas[i].first) << i;
}

}  // namespace
}  // namespace bulkhead::runner
