// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/cmos_rtc.h"

#include <capnp/message.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>

namespace bulkhead::chipset {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;
constexpr int64_t kMs = 1'000'000;

class CmosRtcTest : public testing::Test {
 protected:
  CmosRtcTest() { Make(128 * kMiB); }

  void Make(uint64_t memory_bytes) {
    rtc_.reset();
    OwnFd irq = OrThrow(MakeEventFd());
    irq_ = OrThrow(DuplicateFd(irq.get()));
    rtc_ = std::make_unique<CmosRtc>(
        loop_, memory_bytes, std::move(irq), [this] { ++alarms_; }, [this] { return now_ns_; });
    rtc_->Resume();
  }

  uint8_t Get(uint8_t index) {
    rtc_->Write(0, 1, index);
    return static_cast<uint8_t>(rtc_->Read(1, 1));
  }
  void Put(uint8_t index, uint8_t value) {
    rtc_->Write(0, 1, index);
    rtc_->Write(1, 1, value);
  }
  void At(const CivilTime& time) { now_ns_ = SecondsFrom(time) * kNsPerSecond; }
  // What a timer would do.
  void Advance(int64_t ns) {
    now_ns_ += ns;
    rtc_->Update();
  }
  bool TakeIrq() { return DrainEventFd(irq_.get()) != 0; }

  int64_t now_ns_ =
      SecondsFrom({.year = 2024, .month = 2, .day = 29, .hour = 21, .minute = 58, .second = 59}) * kNsPerSecond;
  int alarms_ = 0;
  device::EventLoop loop_;
  OwnFd irq_;
  std::unique_ptr<CmosRtc> rtc_;
};

TEST_F(CmosRtcTest, ShowsTheHostsTimeInBcd) {
  EXPECT_EQ(Get(0x00), 0x59);
  EXPECT_EQ(Get(0x02), 0x58);
  EXPECT_EQ(Get(0x04), 0x21);
  EXPECT_EQ(Get(0x06), 5);  // a Thursday
  EXPECT_EQ(Get(0x07), 0x29);
  EXPECT_EQ(Get(0x08), 0x02);
  EXPECT_EQ(Get(0x09), 0x24);
  EXPECT_EQ(Get(0x32), 0x20);
  EXPECT_EQ(Get(0x0D), 0x80);
}

TEST_F(CmosRtcTest, ShowsBinaryAndTwelveHoursWhenAsked) {
  Put(0x0B, 0x04);
  EXPECT_EQ(Get(0x00), 59);
  EXPECT_EQ(Get(0x04), 9 | 0x80);
  At({.year = 2024, .month = 3, .day = 1, .hour = 0});
  EXPECT_EQ(Get(0x04), 12);
  At({.year = 2024, .month = 3, .day = 1, .hour = 12});
  EXPECT_EQ(Get(0x04), 12 | 0x80);
  EXPECT_EQ(Get(0x07), 1);
}

TEST_F(CmosRtcTest, AnnouncesAnUpdateAtTheSecondsEndOnly) {
  EXPECT_EQ(Get(0x0A) & 0x80, 0);
  now_ns_ += 997 * kMs;
  EXPECT_EQ(Get(0x0A) & 0x80, 0);
  now_ns_ += kMs;
  EXPECT_EQ(Get(0x0A) & 0x80, 0x80);
  now_ns_ += 2 * kMs;
  EXPECT_EQ(Get(0x0A) & 0x80, 0);
  EXPECT_EQ(Get(0x00), 0x00);
}

// The sequence of Linux: SET and divider reset, values, and back.
TEST_F(CmosRtcTest, RunsOnFromTheTimeTheGuestSet) {
  const uint8_t a = Get(0x0A);
  const uint8_t b = Get(0x0B);
  Put(0x0B, b | 0x80);
  Put(0x0A, 0x70);
  Put(0x00, 0x10);
  Put(0x02, 0x20);
  Put(0x04, 0x03);
  Put(0x07, 0x31);
  Put(0x08, 0x12);
  Put(0x09, 0x99);
  Put(0x32, 0x19);
  now_ns_ += 5 * kNsPerSecond;
  EXPECT_EQ(Get(0x00), 0x10) << "a stopped clock stands still";
  Put(0x0B, b);
  Put(0x0A, a);
  EXPECT_EQ(Get(0x00), 0x10);
  now_ns_ += 499 * kMs;
  EXPECT_EQ(Get(0x00), 0x10);
  now_ns_ += 2 * kMs;  // the first update comes half a second after the divider reset
  EXPECT_EQ(Get(0x00), 0x11);
  EXPECT_EQ(Get(0x32), 0x19);
  now_ns_ += 86400 * kNsPerSecond;
  EXPECT_EQ(Get(0x09), 0x00);
  EXPECT_EQ(Get(0x32), 0x20);
}

TEST_F(CmosRtcTest, TakesAnyBytesForATime) {
  for (int value = 0; value < 256; ++value) {
    for (uint8_t index : {0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32}) Put(index, static_cast<uint8_t>(value));
    for (uint8_t index : {0x01, 0x03, 0x05}) Put(index, static_cast<uint8_t>(value));
    Put(0x0B, static_cast<uint8_t>(value));
    Advance(kNsPerSecond);
  }
  for (int value = 0; value < 256; ++value) Put(0x0A, static_cast<uint8_t>(value));
}

TEST_F(CmosRtcTest, AlarmRaisesTheInterruptOnceUntilAcknowledged) {
  Put(0x01, 0x05);
  Put(0x03, 0xC0);  // any minute
  Put(0x05, 0xFF);  // any hour
  Get(0x0C);
  EXPECT_FALSE(rtc_->timer_at_ns().has_value());
  Put(0x0B, 0x22);
  ASSERT_TRUE(rtc_->timer_at_ns().has_value());
  EXPECT_EQ(*rtc_->timer_at_ns(), now_ns_ + 6 * kNsPerSecond);
  Advance(5 * kNsPerSecond);
  EXPECT_FALSE(TakeIrq());
  Advance(kNsPerSecond);
  EXPECT_TRUE(TakeIrq());
  EXPECT_EQ(alarms_, 1);
  EXPECT_FALSE(rtc_->timer_at_ns().has_value()) << "nothing more can come before it is acknowledged";
  Advance(60 * kNsPerSecond);
  EXPECT_FALSE(TakeIrq());
  EXPECT_EQ(Get(0x0C) & 0xA0, 0xA0);
  EXPECT_EQ(Get(0x0C), 0x00) << "reading clears";
  Advance(60 * kNsPerSecond);
  EXPECT_TRUE(TakeIrq());
}

TEST_F(CmosRtcTest, AlarmOfOneSecondADayIsFoundAcrossMidnight) {
  Put(0x01, 0x58);
  Put(0x03, 0x58);
  Put(0x05, 0x21);
  Put(0x0B, 0x22);
  ASSERT_TRUE(rtc_->timer_at_ns().has_value());
  EXPECT_EQ(*rtc_->timer_at_ns(), now_ns_ + 86399 * kNsPerSecond);
}

TEST_F(CmosRtcTest, UpdateFlagComesWithoutInterruptToo) {
  Get(0x0C);
  now_ns_ += kNsPerSecond;
  EXPECT_EQ(Get(0x0C) & 0x90, 0x10) << "UF without IRQF";
  EXPECT_FALSE(TakeIrq());
  Put(0x0B, 0x12);
  Advance(kNsPerSecond);
  EXPECT_TRUE(TakeIrq());
  EXPECT_EQ(Get(0x0C) & 0x90, 0x90);
}

TEST_F(CmosRtcTest, StoppingTheClockEndsUpdateInterrupts) {
  Put(0x0B, 0x92);
  EXPECT_EQ(Get(0x0B), 0x82);
  Put(0x0B, Get(0x0B) & 0x7F);
  Advance(2 * kNsPerSecond);
  EXPECT_FALSE(TakeIrq());
}

TEST_F(CmosRtcTest, PeriodicInterruptFollowsTheRate) {
  Put(0x0A, 0x2F);  // 2 Hz
  Get(0x0C);
  Put(0x0B, 0x42);
  EXPECT_EQ(*rtc_->timer_at_ns(), now_ns_ + 500 * kMs);
  Put(0x0A, 0x26);  // 1024 Hz
  EXPECT_EQ(*rtc_->timer_at_ns(), now_ns_ + 976'563);
  Advance(976'562);
  EXPECT_FALSE(TakeIrq());
  Advance(1);
  EXPECT_TRUE(TakeIrq());
  EXPECT_EQ(Get(0x0C) & 0xC0, 0xC0);
  Put(0x0B, 0x02);
  EXPECT_FALSE(rtc_->timer_at_ns().has_value()) << "an idle clock has no timer";
}

TEST_F(CmosRtcTest, ARealTimerRaisesTheInterrupt) {
  OwnFd irq = OrThrow(MakeEventFd());
  OwnFd line = OrThrow(DuplicateFd(irq.get()));
  CmosRtc rtc(loop_, 128 * kMiB, std::move(irq), {}, RealtimeNs);
  rtc.Resume();
  rtc.Write(0, 2, 0x230A);  // rate 3, as one word
  rtc.Write(0, 2, 0x420B);
  loop_.Watch(line.get(), EPOLLIN, [this] { loop_.Stop(); });
  loop_.Run();
  EXPECT_EQ(DrainEventFd(line.get()), 1u);
  loop_.Unwatch(line.get());
}

TEST_F(CmosRtcTest, TellsFirmwareTheMemorySize) {
  EXPECT_EQ(Get(0x15) | Get(0x16) << 8, 640);
  EXPECT_EQ(Get(0x17) | Get(0x18) << 8, 0xFFFF);
  EXPECT_EQ(Get(0x30) | Get(0x31) << 8, 0xFFFF);
  EXPECT_EQ(Get(0x34) | Get(0x35) << 8, 112 * 16);
  EXPECT_EQ(Get(0x5B) | Get(0x5C) << 8 | Get(0x5D) << 16, 0);
  Make(6144 * kMiB);
  EXPECT_EQ(Get(0x34) | Get(0x35) << 8, (3072 - 16) * 16);
  EXPECT_EQ(Get(0x5B) | Get(0x5C) << 8 | Get(0x5D) << 16, 3072 * 16);
  Make(2 * kMiB);
  EXPECT_EQ(Get(0x30) | Get(0x31) << 8, 1024);
}

TEST_F(CmosRtcTest, KeepsRamAndIgnoresTheNmiBit) {
  Put(0x0F, 0x5A);
  EXPECT_EQ(Get(0x8F), 0x5A);
  Put(0xFF, 0x77);
  EXPECT_EQ(Get(0x7F), 0x77);
}

TEST_F(CmosRtcTest, PausedItRaisesNothingAndCatchesUpOnResumption) {
  Put(0x0B, 0x12);
  rtc_->Pause();
  EXPECT_FALSE(rtc_->timer_at_ns().has_value());
  Advance(3 * kNsPerSecond);
  EXPECT_FALSE(TakeIrq());
  rtc_->Resume();
  EXPECT_TRUE(TakeIrq());
}

TEST_F(CmosRtcTest, RestoredClockGoesOnWithItsOffset) {
  Put(0x09, 0x30);
  Put(0x0F, 0x42);
  Put(0x0B, 0x12);
  rtc_->Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::CmosState>();
  rtc_->Save(state);
  Make(128 * kMiB);
  rtc_->Pause();
  ASSERT_TRUE(rtc_->Restore(state.asReader()).ok());
  now_ns_ += 10 * kNsPerSecond;
  rtc_->Resume();
  EXPECT_TRUE(TakeIrq());
  EXPECT_EQ(Get(0x09), 0x30);
  EXPECT_EQ(Get(0x00), 0x09);
  EXPECT_EQ(Get(0x0F), 0x42);
}

TEST_F(CmosRtcTest, RefusesStatesThatCannotBe) {
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<state::CmosState>();
  EXPECT_FALSE(rtc_->Restore(state.asReader()).ok());
  rtc_->Save(state);
  state.setOffsetSeconds(INT64_MAX);
  EXPECT_FALSE(rtc_->Restore(state.asReader()).ok());
  rtc_->Save(state);
  state.setCheckedNanoseconds(2'000'000'000);
  EXPECT_FALSE(rtc_->Restore(state.asReader()).ok());
}

}  // namespace
}  // namespace bulkhead::chipset
