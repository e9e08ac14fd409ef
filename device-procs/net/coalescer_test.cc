// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/coalescer.h"

#include <gtest/gtest.h>

namespace bulkhead::device {
namespace {

TEST(Coalescer, HoldsBackUntilThereAreSoManyPackets) {
  Coalescer coalescer;
  coalescer.Set({.max_packets = 3, .max_usecs = 10});
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(coalescer.Add(1000));
    EXPECT_FALSE(coalescer.Add(1000));
    EXPECT_TRUE(coalescer.Add(1000));
    coalescer.Told();
    EXPECT_EQ(coalescer.due_ns(), 0u);
  }
}

TEST(Coalescer, TheTimeCountsFromTheFirstPacket) {
  Coalescer coalescer;
  coalescer.Set({.max_packets = 100, .max_usecs = 10});
  EXPECT_FALSE(coalescer.Due(1'000'000)) << "nothing is held back";
  EXPECT_FALSE(coalescer.Add(1000));
  EXPECT_FALSE(coalescer.Add(10'999));
  EXPECT_EQ(coalescer.due_ns(), 11'000u);
  EXPECT_FALSE(coalescer.Due(10'999));
  EXPECT_TRUE(coalescer.Due(11'000));
  EXPECT_TRUE(coalescer.Add(11'000)) << "not even in the middle of a batch";
  coalescer.Told();
  EXPECT_FALSE(coalescer.Add(20'000));
  EXPECT_EQ(coalescer.due_ns(), 30'000u);
}

TEST(Coalescer, HoldsNothingBackWithoutBothLimits) {
  EXPECT_FALSE(CoalesceLimits().active());
  EXPECT_FALSE((CoalesceLimits{.max_packets = 8, .max_usecs = 0}).active());
  EXPECT_FALSE((CoalesceLimits{.max_packets = 0, .max_usecs = 8}).active());
  EXPECT_FALSE((CoalesceLimits{.max_packets = 1, .max_usecs = 8}).active());
  EXPECT_TRUE((CoalesceLimits{.max_packets = 2, .max_usecs = 1}).active());
}

}  // namespace
}  // namespace bulkhead::device
