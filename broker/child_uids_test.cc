// SPDX-License-Identifier: Apache-2.0
#include "broker/child_uids.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace bulkhead::broker {
namespace {

TEST(ChildUids, RangeIsMappedOnlyIfAllOfItIs) {
  const std::string container = "         0     100000      65536\n     70000 1000 1\n";
  EXPECT_TRUE(IsMapped({1, 65535}, container));
  EXPECT_FALSE(IsMapped({1, 65536}, container));
  EXPECT_TRUE(IsMapped({70000, 1}, container));
  EXPECT_FALSE(IsMapped({70000, 2}, container));
  EXPECT_TRUE(IsMapped({}, "0 0 4294967295\n"));
  EXPECT_FALSE(IsMapped({}, ""));
}

TEST(ChildUids, NoTwoBrokersTakeTheSame) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root has more than one user id";
  const UidRange range{1'900'000'000, 4};
  ChildUids one(range), other(range);
  std::set<uint32_t> taken;
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(taken.insert(one.Take().value()).second);
    EXPECT_TRUE(taken.insert(other.Take().value()).second);
  }
  EXPECT_EQ(*taken.begin(), range.first);
  EXPECT_THROW(one.Take(), FatalError);
}

TEST(ChildUids, OrdinaryUserHasNone) {
  if (::geteuid() == 0) GTEST_SKIP() << "root has many";
  EXPECT_FALSE(ChildUids({}).Take());
  EXPECT_FALSE(ChildUids({}).missing().empty());
  EXPECT_THROW(ChildUids{UidRange{}}, FatalError);
}

}  // namespace
}  // namespace bulkhead::broker
