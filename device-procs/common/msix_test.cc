// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/msix.h"

#include <gtest/gtest.h>

#include <thread>

namespace bulkhead::device {
namespace {

constexpr uint64_t kEntryBytes = 16;
constexpr uint16_t kVectors = 3;

class MsixTest : public testing::Test {
 protected:
  MsixTest() : msix_(MakeInterrupts()) { msix_.SetControl(/*enabled=*/true, /*function_masked=*/false); }

  std::vector<OwnFd> MakeInterrupts() {
    std::vector<OwnFd> theirs;
    for (uint16_t i = 0; i < kVectors; ++i) {
      ours_.push_back(OrThrow(MakeEventFd()));
      theirs.push_back(OrThrow(DuplicateFd(ours_.back().get())));
    }
    return theirs;
  }
  uint64_t Interrupts(uint16_t vector) { return DrainEventFd(ours_[vector].get()); }
  std::optional<MsiRoute> Mask(uint16_t vector) { return msix_.WriteTable(kEntryBytes * vector + 12, 4, 1); }
  std::optional<MsiRoute> Unmask(uint16_t vector) { return msix_.WriteTable(kEntryBytes * vector + 12, 4, 0); }

  std::vector<OwnFd> ours_;
  Msix msix_;
};

TEST_F(MsixTest, EntriesStartMasked) {
  for (uint16_t vector = 0; vector < kVectors; ++vector) {
    EXPECT_EQ(msix_.ReadTable(kEntryBytes * vector, 8), 0u);
    EXPECT_EQ(msix_.ReadTable(kEntryBytes * vector + 12, 4), 1u);
  }
}

TEST_F(MsixTest, TableTakesDwordsAndQuadwordsOnly) {
  msix_.WriteTable(16, 4, 0xFEE0'1000);
  msix_.WriteTable(20, 4, 0x1);
  msix_.WriteTable(24, 8, 0xFFFF'FFFF'0000'0041);
  EXPECT_EQ(msix_.ReadTable(16, 8), 0x1'FEE0'1000u);
  EXPECT_EQ(msix_.ReadTable(24, 4), 0x41u);
  EXPECT_EQ(msix_.ReadTable(28, 4), 1u) << "only the mask bit exists";
  msix_.WriteTable(16, 2, 0xAAAA);
  msix_.WriteTable(18, 4, 0xAAAA);
  msix_.WriteTable(20, 8, 0xAAAA);
  msix_.WriteTable(kEntryBytes * kVectors, 4, 0xAAAA);
  EXPECT_EQ(msix_.ReadTable(16, 8), 0x1'FEE0'1000u);
  EXPECT_EQ(msix_.ReadTable(17, 1), 0xFFu);
  EXPECT_EQ(msix_.ReadTable(18, 4), 0xFFFF'FFFFu);
  EXPECT_EQ(msix_.ReadTable(kEntryBytes * kVectors, 4), 0xFFFF'FFFFu);
}

TEST_F(MsixTest, SignalsAnUnmaskedVectorOnly) {
  Unmask(1);
  msix_.Signal(1);
  msix_.Signal(2);
  EXPECT_EQ(Interrupts(0), 0u);
  EXPECT_EQ(Interrupts(1), 1u);
  EXPECT_EQ(Interrupts(2), 0u);
  EXPECT_EQ(msix_.ReadPending(0, 4), 0b100u);
}

TEST_F(MsixTest, MaskedVectorIsDeliveredOnceWhenUnmasked) {
  Unmask(0);
  Mask(0);
  msix_.Signal(0);
  msix_.Signal(0);
  EXPECT_EQ(msix_.ReadPending(0, 8), 1u);
  auto route = Unmask(0);
  EXPECT_FALSE(route) << "the route is the one announced before";
  EXPECT_EQ(Interrupts(0), 1u);
  EXPECT_EQ(msix_.ReadPending(0, 8), 0u);
}

TEST_F(MsixTest, FunctionMaskHoldsBackAllVectors) {
  Unmask(0);
  Unmask(2);
  msix_.SetControl(true, true);
  msix_.Signal(0);
  msix_.Signal(2);
  EXPECT_EQ(Interrupts(0) + Interrupts(2), 0u);
  EXPECT_EQ(msix_.ReadPending(0, 4), 0b101u);
  msix_.SetControl(true, false);
  EXPECT_EQ(Interrupts(0), 1u);
  EXPECT_EQ(Interrupts(2), 1u);
  EXPECT_EQ(msix_.ReadPending(0, 4), 0u);
}

TEST_F(MsixTest, NothingIsSignalledOrKeptWhileDisabled) {
  Unmask(0);
  msix_.SetControl(false, false);
  msix_.Signal(0);
  msix_.SetControl(true, false);
  EXPECT_EQ(Interrupts(0), 0u);
}

TEST_F(MsixTest, VectorThatDoesNotExistIsIgnored) {
  msix_.Signal(kVectors);
  msix_.Signal(0xFFFF);
  EXPECT_EQ(msix_.ReadPending(0, 8), 0u);
}

TEST_F(MsixTest, SomebodyElseMaySignalAVectorWhileItIsDeliverable) {
  EXPECT_EQ(msix_.DirectFd(0), -1) << "masked";
  Unmask(0);
  const int direct = msix_.DirectFd(0);
  ASSERT_GE(direct, 0);
  SignalEventFd(direct);
  EXPECT_EQ(Interrupts(0), 1u);
  msix_.SetControl(true, true);
  EXPECT_EQ(msix_.DirectFd(0), -1);
  msix_.SetControl(false, false);
  EXPECT_EQ(msix_.DirectFd(0), -1);
  EXPECT_EQ(msix_.DirectFd(0xFFFF), -1);
}

TEST_F(MsixTest, RouteIsAnnouncedWhenUnmaskedAndWhenChangedUnmasked) {
  EXPECT_FALSE(msix_.WriteTable(0, 4, 0xFEE0'0000)) << "masked: nobody needs to know yet";
  EXPECT_FALSE(msix_.WriteTable(8, 4, 0x30));
  auto route = Unmask(0);
  ASSERT_TRUE(route);
  EXPECT_EQ(route->vector, 0);
  EXPECT_EQ(route->address, 0xFEE0'0000u);
  EXPECT_EQ(route->data, 0x30u);
  EXPECT_FALSE(route->deliver);

  route = msix_.WriteTable(8, 4, 0x31);
  ASSERT_TRUE(route);
  EXPECT_EQ(route->data, 0x31u);
  EXPECT_FALSE(msix_.WriteTable(8, 4, 0x31)) << "no change";
}

TEST_F(MsixTest, PendingInterruptWaitsForItsNewRoute) {
  Unmask(0);
  Mask(0);
  msix_.WriteTable(8, 4, 0x55);
  msix_.Signal(0);
  auto route = Unmask(0);
  ASSERT_TRUE(route);
  EXPECT_TRUE(route->deliver);
  EXPECT_EQ(Interrupts(0), 0u) << "the runner signals it once the route is installed";
  EXPECT_EQ(msix_.ReadPending(0, 8), 0u);
}

TEST_F(MsixTest, StateSurvivesARoundTrip) {
  msix_.WriteTable(16, 8, 0xFEE0'2000);
  msix_.WriteTable(24, 8, 0x77);
  msix_.Signal(2);
  Msix other(MakeInterrupts());
  ASSERT_TRUE(other.Restore(msix_.Save()).ok());
  EXPECT_EQ(other.ReadTable(16, 8), 0xFEE0'2000u);
  EXPECT_EQ(other.ReadTable(28, 4), 0u);
  EXPECT_EQ(other.ReadPending(0, 8), 0b100u);
  other.Signal(1);
  EXPECT_EQ(Interrupts(kVectors + 1), 1u) << "enabled and unmasked as it was";
  EXPECT_FALSE(other.WriteTable(28, 4, 0)) << "the runner has this route";
}

TEST_F(MsixTest, StateOfAnotherSizeIsRefused) {
  Msix::State state = msix_.Save();
  state.entries.pop_back();
  EXPECT_FALSE(msix_.Restore(state).ok());
}

// For the thread sanitizer as much as for the count: none may be lost between masking and unmasking.
TEST_F(MsixTest, SignalsFromAnotherThreadAreNeverLost) {
  Unmask(0);
  std::thread worker([this] {
    for (int i = 0; i < 2000; ++i) msix_.Signal(0);
  });
  for (int i = 0; i < 2000; ++i) {
    Mask(0);
    Unmask(0);
  }
  worker.join();
  EXPECT_GE(Interrupts(0), 1u);
  EXPECT_EQ(msix_.ReadPending(0, 8), 0u);
}

}  // namespace
}  // namespace bulkhead::device
