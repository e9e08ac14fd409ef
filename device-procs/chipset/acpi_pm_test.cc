// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/acpi_pm.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

namespace bulkhead::chipset {
namespace {

class AcpiPmTest : public testing::Test {
 protected:
  AcpiPmTest() {
    OwnFd raise = OrThrow(MakeEventFd());
    OwnFd resample = OrThrow(MakeEventFd());
    raise_ = OrThrow(DuplicateFd(raise.get()));
    resample_ = OrThrow(DuplicateFd(resample.get()));
    sci_ = std::make_unique<LevelLine>(loop_, std::move(raise), std::move(resample));
    Make();
  }

  void Make() {
    pm_.reset();
    pm_ = std::make_unique<AcpiPm>(
        loop_, *sci_, [this] { ++power_offs_; }, [this] { return now_ns_; });
    sci_->Resume();
    pm_->Resume();
  }
  // KVM on the guest's end of interrupt.
  void EndOfInterrupt() {
    SignalEventFd(resample_.get());
    loop_.Stop();
    loop_.Run();
  }
  uint64_t Raised() { return DrainEventFd(raise_.get()); }

  int64_t now_ns_ = 1'000'000'000'000;
  int power_offs_ = 0;
  device::EventLoop loop_;
  OwnFd raise_;
  OwnFd resample_;
  std::unique_ptr<LevelLine> sci_;
  std::unique_ptr<AcpiPm> pm_;
};

TEST_F(AcpiPmTest, PowerButtonHoldsTheSciUntilItsStatusIsCleared) {
  pm_->WriteEvent(2, 2, 0x0100);
  EXPECT_EQ(Raised(), 0u);
  pm_->PressPowerButton();
  EXPECT_EQ(Raised(), 1u);
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0x0100u);
  EndOfInterrupt();
  EXPECT_EQ(Raised(), 1u) << "still pending: raised again";
  pm_->WriteEvent(0, 2, 0x0001);
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0x0100u) << "a zero clears nothing";
  pm_->WriteEvent(0, 2, 0x0100);
  EXPECT_EQ(pm_->ReadEvent(0, 4), 0x0100'0000u);
  EndOfInterrupt();
  EXPECT_EQ(Raised(), 0u);
}

TEST_F(AcpiPmTest, DisabledEventRaisesTheSciOnceEnabled) {
  pm_->PressPowerButton();
  EXPECT_EQ(Raised(), 0u);
  pm_->WriteEvent(3, 1, 0x01);
  EXPECT_EQ(Raised(), 1u);
}

TEST_F(AcpiPmTest, OnlySoftOffEndsTheMachine) {
  EXPECT_EQ(pm_->ReadControl(0, 2), 1u) << "SCI_EN is always set";
  pm_->WriteControl(0, 2, 5 << 10);
  EXPECT_EQ(power_offs_, 0) << "no SLP_EN";
  EXPECT_EQ(pm_->ReadControl(0, 2), 5u << 10 | 1);
  pm_->WriteControl(0, 2, 1 << 13 | 3 << 10);
  EXPECT_EQ(power_offs_, 0);
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0x8000u) << "another sleep state wakes at once";
  pm_->WriteControl(0, 2, 1 << 13 | 5 << 10);
  EXPECT_EQ(power_offs_, 1);
  EXPECT_EQ(pm_->ReadControl(0, 2), 5u << 10 | 1) << "SLP_EN reads 0";
  pm_->WriteControl(1, 1, (1 << 13 | 5 << 10) >> 8);
  EXPECT_EQ(power_offs_, 2);
}

TEST_F(AcpiPmTest, TimerCountsAtItsFrequencyThroughPauses) {
  EXPECT_EQ(pm_->ReadTimer(0, 4), 0u);
  now_ns_ += kNsPerSecond;
  EXPECT_EQ(pm_->ReadTimer(0, 4), 3'579'545u);
  pm_->Pause();
  now_ns_ += kNsPerSecond;
  pm_->Resume();
  EXPECT_EQ(pm_->ReadTimer(0, 4), 7'159'090u);
  EXPECT_EQ(pm_->ReadTimer(1, 1), 7'159'090u >> 8 & 0xFF);
  now_ns_ += 1200 * kNsPerSecond;
  EXPECT_EQ(pm_->ReadTimer(0, 4), (7'159'090u + 1200ull * 3'579'545u) & 0xFFFF'FFFF);
}

TEST_F(AcpiPmTest, TimerStatusFollowsTheTopBit) {
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0u);
  now_ns_ += 601 * kNsPerSecond;  // 2^31 ticks are 599.9 s
  EXPECT_EQ(pm_->ReadEvent(0, 2), 1u);
  pm_->WriteEvent(0, 2, 1);
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0u);
  pm_->WriteEvent(2, 2, 1);
  EXPECT_EQ(Raised(), 0u);
  now_ns_ += 600 * kNsPerSecond;
  pm_->Update();
  EXPECT_EQ(Raised(), 1u);
}

TEST_F(AcpiPmTest, EveryEventBringsTheTimerStatusUpToDate) {
  pm_->WriteEvent(2, 2, 0x0001);
  now_ns_ += 20'000 * kNsPerSecond;
  pm_->PressPowerButton();
  EXPECT_EQ(Raised(), 1u) << "by the timer's status";
  EXPECT_EQ(pm_->ReadEvent(0, 2), 0x0101u);
}

TEST_F(AcpiPmTest, RestoredStateRaisesAPendingSci) {
  pm_->WriteEvent(2, 2, 0x0100);
  pm_->PressPowerButton();
  now_ns_ += kNsPerSecond;
  pm_->Pause();
  sci_->Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::AcpiPmState>();
  pm_->Save(state);
  Raised();
  sci_->Set(false);
  now_ns_ = 5;
  pm_ = std::make_unique<AcpiPm>(
      loop_, *sci_, [] {}, [this] { return now_ns_; });
  pm_->Restore(state.asReader());
  EXPECT_EQ(Raised(), 0u) << "paused";
  sci_->Resume();
  pm_->Resume();
  EXPECT_EQ(Raised(), 1u);
  EXPECT_EQ(pm_->ReadTimer(0, 4), 3'579'545u);
  EXPECT_EQ(pm_->ReadEvent(0, 4), 0x0100'0100u);
}

}  // namespace
}  // namespace bulkhead::chipset
