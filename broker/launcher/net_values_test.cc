// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

using Bytes = std::vector<uint8_t>;

std::string ErrorOf(const std::string& text) {
  try {
    ParseNet(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(NetOption, TapAndBridgeHaveNames) {
  EXPECT_EQ(ParseNet("tap=tap0").kind, NetOption::Kind::kTap);
  EXPECT_EQ(ParseNet("bridge=br0").kind, NetOption::Kind::kBridge);
  EXPECT_EQ(ParseNet("mtu=9000,tap=tap0").interface, "tap0");
  for (const char* wrong : {"", "tap=", "tap=a/b", "tap=sixteen-letters-", "tap=tap%d", "mtu=1500", "tap=a,bridge=b"}) {
    EXPECT_TRUE(ErrorOf(wrong).starts_with("--net: ")) << wrong;
  }
  EXPECT_NE(ErrorOf("tap=tap0,user").find("give one of"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=tap0,hostfwd=tcp::22-:22").find("goes with user only"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=tap0,colour=red").find("unknown word 'colour'"), std::string::npos);
}

TEST(NetOption, UserNeedsNoName) {
  EXPECT_EQ(ParseCommandLine({"run", "--kernel", "k", "--net", "user"}).run.nets.at(0).kind, NetOption::Kind::kUser);
  EXPECT_EQ(ParseNet("hostfwd=tcp::1-:1,user").user.host_forwards.size(), 1u);
}

TEST(NetOption, MacIsAHosts) {
  EXPECT_EQ(ParseNet("tap=t,mac=52:54:00:12:34:5F").mac, (Bytes{0x52, 0x54, 0, 0x12, 0x34, 0x5F}));
  for (const char* wrong : {"", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "52:54:0:12:34:56",
                            "52:54:00:12:34:5g", "52:54:00:12:34:", "52:54:00:12:34:561"}) {
    EXPECT_NE(ErrorOf(std::string("tap=t,mac=") + wrong).find("is no MAC address"), std::string::npos) << wrong;
  }
  EXPECT_NE(ErrorOf("tap=t,mac=53:54:00:12:34:56").find("group"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=t,mac=00:00:00:00:00:00").find("is no host's"), std::string::npos);
}

TEST(NetOption, AddressesAreOfBothKinds) {
  const auto addresses = ParseNet("tap=t,ip=192.0.2.7+2001:db8::7").addresses;
  ASSERT_EQ(addresses.size(), 2u);
  EXPECT_EQ(addresses[0], (Bytes{192, 0, 2, 7}));
  EXPECT_EQ(addresses[1].size(), 16u);
  for (const char* wrong : {"", "192.0.2", "192.0.2.7+", "host", "192.0.2.0/24"}) {
    EXPECT_NE(ErrorOf(std::string("tap=t,ip=") + wrong).find("is no IP address"), std::string::npos) << wrong;
  }
}

TEST(NetOption, WordsHaveTheirRanges) {
  const NetOption net =
      ParseNet("tap=t,queues=8,mtu=9000,id=lan,mac-spoofing=allow,link=off,bps=10M,pps=1000,pps-burst=20");
  EXPECT_EQ(net.queues, 8);
  EXPECT_EQ(net.mtu, 9000);
  EXPECT_EQ(net.id, "lan");
  EXPECT_TRUE(net.any_mac);
  EXPECT_FALSE(net.link_on);
  EXPECT_TRUE(ParseNet("tap=t,link=on").link_on);
  EXPECT_EQ(net.throttle.bytes_per_second, uint64_t{10} << 20);
  EXPECT_EQ(net.throttle.operations_per_second, 1000u);
  EXPECT_EQ(net.throttle.operations_burst, 20u);
  EXPECT_FALSE(ParseNet("tap=t").any_mac);
  for (const char* wrong : {"queues=0", "queues=9", "mtu=67", "mtu=65536", "id=", "mac-spoofing=yes", "link=up", "link",
                            "iops=3", "pps-burst=3", "bps=much"}) {
    EXPECT_NE(ErrorOf(std::string("tap=t,") + wrong), "") << wrong;
  }
}

TEST(NetOption, WhatVhostCannotKeepIsGivenUpByName) {
  EXPECT_FALSE(ParseNet("tap=t,vhost=off").vhost);
  EXPECT_TRUE(ParseNet("vhost=on,mac-spoofing=allow,bridge=b").vhost);
  EXPECT_NE(ErrorOf("tap=t,vhost=on").find("add mac-spoofing=allow"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=t,vhost=on,mac-spoofing=deny").find("add mac-spoofing=allow"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=t,vhost=on,mac-spoofing=allow,ip=192.0.2.7").find("leave ip or vhost away"),
            std::string::npos);
  for (const char* limit : {"bps=1M", "pps=100"}) {
    const std::string error = ErrorOf(std::string("tap=t,vhost=on,mac-spoofing=allow,") + limit);
    EXPECT_NE(error.find("cannot limit"), std::string::npos) << limit;
  }
  EXPECT_NE(ErrorOf("user,vhost=on,mac-spoofing=allow").find("tap and bridge only"), std::string::npos);
  EXPECT_NE(ErrorOf("tap=t,vhost").find("vhost is on or off"), std::string::npos);
}

TEST(NetOption, DefaultMacIsStableLocalAndOfOneHost) {
  const Bytes mac = DefaultMac("web1", "0");
  EXPECT_EQ(mac, DefaultMac("web1", "0"));
  EXPECT_NE(mac, DefaultMac("web1", "1"));
  EXPECT_NE(mac, DefaultMac("web2", "0"));
  ASSERT_EQ(mac.size(), 6u);
  EXPECT_EQ(mac[0] & 3, 2);
}

TEST(NetOption, IsRepeatableOnTheCommandLine) {
  const auto line = ParseCommandLine({"run", "--kernel", "k", "--net", "tap=a", "--net=bridge=b,mtu=1400"});
  ASSERT_EQ(line.run.nets.size(), 2u);
  EXPECT_EQ(line.run.nets[1].interface, "b");
}

}  // namespace
}  // namespace bulkhead::launcher
