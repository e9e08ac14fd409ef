// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "broker/launcher/options.h"

namespace bulkhead::launcher {
namespace {

UserNetOption Parse(const std::string& words) { return ParseNet("user" + (words.empty() ? "" : "," + words)).user; }

void ExpectRefused(const std::string& words, const std::string& why) {
  try {
    Parse(words);
    ADD_FAILURE() << words << " is taken";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << words << ": " << error.what();
  }
}

const AddressBytes kLoopback{127, 0, 0, 1};

AddressBytes Ip6(std::initializer_list<uint8_t> first, uint8_t last) {
  AddressBytes address(16);
  std::copy(first.begin(), first.end(), address.begin());
  address.back() = last;
  return address;
}

TEST(UserNetOption, HasTheDefaultsOfQemusUsers) {
  const NetOption net = ParseNet("user");
  EXPECT_EQ(net.kind, NetOption::Kind::kUser);
  EXPECT_EQ(net.user.network, (AddressBytes{10, 0, 2, 0}));
  EXPECT_EQ(net.user.prefix, 24);
  EXPECT_TRUE(net.user.ip4 && net.user.ip6 && net.user.serves_dns);
  EXPECT_FALSE(net.user.restricted);
}

TEST(UserNetOption, GoesWithWhatEveryInterfaceHas) {
  const NetOption net = ParseNet("user,mac=52:54:00:12:34:56,mtu=9000,id=x,bps=1M,ip=10.0.2.15");
  EXPECT_EQ(net.mtu, 9000);
  EXPECT_EQ(net.throttle.bytes_per_second, 1u << 20);
  for (const char* wrong : {"mtu=1279", "mtu=65522", "queues=2", "tap=x", "user", "colour=red"}) {
    EXPECT_THROW(ParseNet(std::string("user,") + wrong), UsageError) << wrong;
  }
  EXPECT_THROW(ParseNet("user=x"), UsageError);
  EXPECT_EQ(ParseNet("user,ipv6=off,mtu=576").mtu, 576);
}

TEST(UserNetOption, PortsOfTheHostLeadToTheGuest) {
  const auto forwards = Parse(
                            "hostfwd=tcp::2222-:22,hostfwd=udp:0.0.0.0:53-10.0.2.20:5353,"
                            "hostfwd=tcp:[::1]:80-[fec0::15]:8080")
                            .host_forwards;
  ASSERT_EQ(forwards.size(), 3u);
  EXPECT_FALSE(forwards[0].udp);
  EXPECT_EQ(forwards[0].host_address, kLoopback);
  EXPECT_EQ(forwards[0].host_port, 2222);
  EXPECT_EQ(forwards[0].guest_address, (AddressBytes{10, 0, 2, 15}));
  EXPECT_EQ(forwards[0].guest_port, 22);
  EXPECT_TRUE(forwards[1].udp);
  EXPECT_EQ(forwards[1].host_address, (AddressBytes{0, 0, 0, 0}));
  EXPECT_EQ(forwards[1].guest_address, (AddressBytes{10, 0, 2, 20}));
  EXPECT_EQ(forwards[2].host_address, Ip6({}, 1));
  EXPECT_EQ(forwards[2].guest_address, Ip6({0xFE, 0xC0}, 0x15));
  for (const char* wrong : {"", "tcp", "2222-:22", "tcp::2222", "tcp::2222-22", "tcp::0-:22", "tcp::65536-:22",
                            "tcp:host:1-:22", "tcp:::1:80-:80", "tcp::80-:80x", "sctp::1-:1"}) {
    ExpectRefused(std::string("hostfwd=") + wrong, "is no forward");
  }
  ExpectRefused("hostfwd=tcp:[::1]:80-:80", "one kind of addresses");
  ExpectRefused("hostfwd=tcp::80-10.0.3.1:80", "outside of the guest's network");
  ExpectRefused("ipv4=off,hostfwd=tcp::80-:80", "that is off");
}

TEST(UserNetOption, AForwardFollowsTheNetworkWhereverItStands) {
  const auto user = Parse("hostfwd=tcp::2222-:22,net=192.168.64.0/20");
  EXPECT_EQ(user.host_forwards.at(0).guest_address, (AddressBytes{192, 168, 64, 15}));
  EXPECT_EQ(user.prefix, 20);
  for (const char* wrong : {"", "10.0.2.1/24", "10.0.2.0/28", "10.0.0.0/7", "fec0::/64", "10.0.2.0/x"}) {
    EXPECT_THROW(Parse(std::string("net=") + wrong), UsageError) << wrong;
  }
}

TEST(UserNetOption, PortsOfTheGuestsNetworkLeadToTheHost) {
  const auto forwards = Parse("guestfwd=tcp:10.0.2.100:80-tcp:127.0.0.1:8080").guest_forwards;
  ASSERT_EQ(forwards.size(), 1u);
  EXPECT_EQ(forwards[0].guest_address, (AddressBytes{10, 0, 2, 100}));
  EXPECT_EQ(forwards[0].guest_port, 80);
  EXPECT_EQ(forwards[0].host_address, kLoopback);
  EXPECT_EQ(forwards[0].host_port, 8080);
  for (const char* wrong : {"tcp:10.0.2.100:80", "tcp:10.0.2.100:80-127.0.0.1:80", "udp:10.0.2.100:80-tcp:1.2.3.4:80",
                            "tcp::80-tcp:127.0.0.1:80", "tcp:10.0.2.100:80-cmd:ls"}) {
    ExpectRefused(std::string("guestfwd=") + wrong, "is no forward");
  }
  ExpectRefused("guestfwd=tcp:10.0.3.1:80-tcp:127.0.0.1:80", "outside");
  ExpectRefused("guestfwd=tcp:10.0.2.2:80-tcp:127.0.0.1:80", "take another");
}

TEST(UserNetOption, RulesNameAddressesAndPorts) {
  const auto rules = Parse(
                         "allow=127.0.0.1:8000,deny=192.0.2.0/24,allow=2001:db8::/32,deny=[2001:db8::1]:443,"
                         "allow=[2001:db8::]/48:80,deny=192.0.2.0/25:53,allow=::1")
                         .rules;
  ASSERT_EQ(rules.size(), 7u);
  EXPECT_TRUE(rules[0].allow);
  EXPECT_EQ(rules[0].address, kLoopback);
  EXPECT_EQ(rules[0].prefix, 32);
  EXPECT_EQ(rules[0].port, 8000);
  EXPECT_FALSE(rules[1].allow);
  EXPECT_EQ(rules[1].prefix, 24);
  EXPECT_EQ(rules[1].port, 0);
  EXPECT_EQ(rules[2].address, Ip6({0x20, 0x01, 0x0D, 0xB8}, 0));
  EXPECT_EQ(rules[2].prefix, 32);
  EXPECT_EQ(rules[3].prefix, 128);
  EXPECT_EQ(rules[3].port, 443);
  EXPECT_EQ(rules[4].prefix, 48);
  EXPECT_EQ(rules[4].port, 80);
  EXPECT_EQ(rules[5].prefix, 25);
  EXPECT_EQ(rules[5].port, 53);
  EXPECT_EQ(rules[6].prefix, 128);
  for (const char* wrong : {"", "host", "192.0.2.0/33", "192.0.2.0/", "192.0.2.1:0", "192.0.2.1:x", "[::1", "[::1]x",
                            "2001:db8::/129", "192.0.2.1/24/3", "[::1]80", "192.0.2"}) {
    ExpectRefused(std::string("allow=") + wrong, "is no rule");
    ExpectRefused(std::string("deny=") + wrong, "is no rule");
  }
}

TEST(UserNetOption, ResolversAreOneOfAKind) {
  EXPECT_EQ(Parse("dns=192.0.2.53,dns=2001:db8::53").resolvers.size(), 2u);
  EXPECT_FALSE(Parse("dns=off").serves_dns);
  ExpectRefused("dns=192.0.2.53,dns=192.0.2.54", "second");
  ExpectRefused("dns=example.org", "no IP address");
  ExpectRefused("dns=off,dns=192.0.2.53", "either");
}

TEST(UserNetOption, SwitchesAndNames) {
  EXPECT_TRUE(Parse("restrict=on").restricted);
  EXPECT_FALSE(Parse("ipv6=off").ip6);
  EXPECT_EQ(Parse("hostname=web-1").hostname, "web-1");
  ExpectRefused("restrict=yes", "neither on nor off");
  ExpectRefused("ipv4=off,ipv6=off", "leave it");
  for (const char* wrong : {"", "-a", "a-", "a.b", "a_b", "abcdefghijklmnopqrstuvwxyz0123456"}) {
    ExpectRefused(std::string("hostname=") + wrong, "is no host name");
  }
}

}  // namespace
}  // namespace bulkhead::launcher
