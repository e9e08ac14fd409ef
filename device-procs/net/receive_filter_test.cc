// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/receive_filter.h"

#include <gtest/gtest.h>

namespace bulkhead::device {
namespace {

constexpr MacAddress kOwn{2, 0, 0, 0, 0, 1}, kOther{2, 0, 0, 0, 0, 2}, kGroup{3, 0, 0, 0, 0, 9};

// A frame to an address, with a tag if the VLAN is not negative.
std::vector<std::byte> FrameTo(const MacAddress& to, int vlan = -1) {
  std::vector<std::byte> frame(kFilteredBytes);
  for (size_t i = 0; i < to.size(); ++i) frame[i] = std::byte{to[i]};
  if (vlan < 0) return frame;
  frame[12] = std::byte{0x81};
  frame[14] = static_cast<std::byte>(0x60 | vlan >> 8);
  frame[15] = static_cast<std::byte>(vlan);
  return frame;
}

TEST(ReceiveFilter, TakesAllUntilItIsTold) { EXPECT_TRUE(ReceiveFilter{}.Wants(FrameTo(kOther))); }

TEST(ReceiveFilter, TakesItsOwnAndWhatIsToAll) {
  const ReceiveFilter filter{.promiscuous = false, .mac = kOwn};
  EXPECT_TRUE(filter.Wants(FrameTo(kOwn)));
  EXPECT_TRUE(filter.Wants(FrameTo({0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF})));
  EXPECT_FALSE(filter.Wants(FrameTo(kOther)));
  EXPECT_FALSE(filter.Wants(FrameTo(kGroup)));
}

TEST(ReceiveFilter, TakesWhatIsInItsTables) {
  ReceiveFilter filter{.promiscuous = false, .mac = kOwn, .unicast = {kOther}, .multicast = {kGroup}};
  EXPECT_TRUE(filter.Wants(FrameTo(kOther)));
  EXPECT_TRUE(filter.Wants(FrameTo(kGroup)));
  filter.unicast.clear();
  filter.multicast.clear();
  filter.all_multicast = true;
  EXPECT_FALSE(filter.Wants(FrameTo(kOther)));
  EXPECT_TRUE(filter.Wants(FrameTo(kGroup)));
}

TEST(ReceiveFilter, TakesTheVlansOfWhoFiltersByThem) {
  ReceiveFilter filter{.mac = kOwn};
  EXPECT_TRUE(filter.Wants(FrameTo(kOwn, 300)));
  filter.by_vlan = true;
  EXPECT_FALSE(filter.Wants(FrameTo(kOwn, 300)));
  EXPECT_TRUE(filter.Wants(FrameTo(kOwn))) << "has no tag";
  filter.vlans.set(300);
  EXPECT_TRUE(filter.Wants(FrameTo(kOwn, 300)));
  EXPECT_FALSE(filter.Wants(FrameTo(kOwn, 301)));
  const auto tagged = FrameTo(kOwn, 300);
  EXPECT_FALSE(filter.Wants(std::span(tagged).first(15))) << "ends in its tag";
}

TEST(ReceiveFilter, WantsNothingThatIsNoFrame) {
  EXPECT_FALSE(ReceiveFilter{}.Wants(std::vector<std::byte>(kEthernetBytes - 1)));
}

}  // namespace
}  // namespace bulkhead::device
