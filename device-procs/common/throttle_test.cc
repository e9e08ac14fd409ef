// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/throttle.h"

#include <gtest/gtest.h>

namespace bulkhead::device {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kNow = 77 * kSecond;

// How many requests of `bytes` each begin until `end_ns`, asked for as fast as they may.
uint64_t Begun(Throttle& throttle, uint64_t start_ns, uint64_t end_ns, uint64_t bytes) {
  uint64_t now = start_ns, count = 0;
  while (true) {
    now += throttle.WaitNs(now);
    if (now >= end_ns) return count;
    throttle.Charge(now, bytes, 1);
    ++count;
  }
}

TEST(Throttle, WithoutLimitsNothingWaits) {
  Throttle throttle;
  EXPECT_FALSE(throttle.limited());
  throttle.Set({});
  EXPECT_FALSE(throttle.limited());
  throttle.Charge(kNow, UINT64_MAX, UINT64_MAX);
  EXPECT_EQ(throttle.WaitNs(kNow), 0u);
}

TEST(Throttle, GivesTheRateAndAtFirstTheBurst) {
  Throttle throttle;
  throttle.Set({.bytes = {}, .operations = {.per_second = 100, .burst = 50}});
  EXPECT_TRUE(throttle.limited());
  EXPECT_EQ(Begun(throttle, kNow, kNow + 10 * kSecond, 1 << 20), 50u + 10 * 100);
}

TEST(Throttle, TheBurstWithoutAWordIsATenthOfASecond) {
  Throttle throttle;
  throttle.Set({.bytes = {.per_second = 1000 * 4096, .burst = 0}, .operations = {}});
  EXPECT_EQ(Begun(throttle, kNow, kNow + 2 * kSecond, 4096), 100u + 2000);
}

TEST(Throttle, TheNarrowerLimitCounts) {
  Throttle throttle;
  throttle.Set({.bytes = {.per_second = 1 << 20, .burst = 1}, .operations = {.per_second = 1000, .burst = 1}});
  EXPECT_EQ(Begun(throttle, kNow, kNow + 4 * kSecond, 1 << 19), 1 + 4 * 2u);
  throttle.Set({.bytes = {.per_second = 1 << 20, .burst = 1}, .operations = {.per_second = 1000, .burst = 1}});
  EXPECT_EQ(Begun(throttle, kNow, kNow + 4 * kSecond, 512), 1 + 4 * 1000u);
}

// One that is larger than all that may be saved up goes whole, and is paid for afterwards.
TEST(Throttle, ARequestIsNeverSplit) {
  Throttle throttle;
  throttle.Set({.bytes = {.per_second = 1000, .burst = 100}, .operations = {}});
  EXPECT_EQ(throttle.WaitNs(kNow), 0u);
  throttle.Charge(kNow, 10'000, 1);
  EXPECT_EQ(throttle.WaitNs(kNow), 10 * kSecond - kSecond / 10);
  EXPECT_EQ(throttle.WaitNs(kNow + 10 * kSecond), 0u);
}

TEST(Throttle, ARestSavesUpNoMoreThanTheBurst) {
  Throttle throttle;
  throttle.Set({.bytes = {}, .operations = {.per_second = 10, .burst = 5}});
  EXPECT_EQ(Begun(throttle, kNow, kNow + kSecond, 512), 15u);
  EXPECT_EQ(Begun(throttle, kNow + 100 * kSecond, kNow + 101 * kSecond, 512), 15u);
}

TEST(Throttle, NewLimitsForgetWhatIsOwed) {
  Throttle throttle;
  throttle.Set({.bytes = {.per_second = 1, .burst = 0}, .operations = {}});
  throttle.Charge(kNow, UINT64_MAX, 1);
  throttle.Charge(kNow, UINT64_MAX, 1);
  EXPECT_GT(throttle.WaitNs(kNow), 1000 * kSecond);
  throttle.Set({.bytes = {.per_second = 1 << 20, .burst = 0}, .operations = {}});
  EXPECT_EQ(throttle.WaitNs(kNow), 0u);
}

}  // namespace
}  // namespace bulkhead::device
