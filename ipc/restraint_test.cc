// SPDX-License-Identifier: Apache-2.0
#include "ipc/restraint.h"

#include <gtest/gtest.h>

namespace bulkhead {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;

TEST(Restraint, OneThatDiesNowAndThenIsStartedAgainForEver) {
  Restraint restraint(2);
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(restraint.Died(i * 31 * kSecondNs), 0) << i;
}

TEST(Restraint, TooOftenWithinAMinuteIsTheEnd) {
  Restraint restraint(3);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(restraint.Died(i * 2 * kSecondNs));
  EXPECT_FALSE(restraint.Died(7 * kSecondNs));
  EXPECT_TRUE(restraint.Died(61 * kSecondNs)) << "the first is forgotten";
}

TEST(Restraint, NoneMeansNone) { EXPECT_FALSE(Restraint(0).Died(kSecondNs)); }

TEST(Restraint, OneThatDoesNotLastIsWaitedFor) {
  Restraint restraint(100);
  int64_t now = 0, before = 0;
  unsigned waited = 0;
  for (int i = 0; i < 20; ++i) {
    const auto delay = restraint.Died(now += kSecondNs / 10);
    ASSERT_TRUE(delay);
    EXPECT_GE(*delay, before);
    EXPECT_LE(*delay, 2 * kSecondNs);
    waited += *delay != 0;
    before = *delay;
  }
  EXPECT_EQ(waited, 17u);
  EXPECT_EQ(restraint.Died(now + 2 * kSecondNs), 0) << "one that lasted is not";
}

}  // namespace
}  // namespace bulkhead
