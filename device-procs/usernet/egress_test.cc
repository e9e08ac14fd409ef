// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/egress.h"

#include <arpa/inet.h>
#include <capnp/message.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace bulkhead::usernet {
namespace {

using Builder = control::UserNet::Builder;

Endpoint To(const std::string& address, uint16_t port = 80) {
  sockaddr_in in4{};
  in4.sin_family = AF_INET;
  in4.sin_port = htons(port);
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  if (::inet_pton(AF_INET, address.c_str(), &in4.sin_addr) == 1) {
    return EndpointOf(reinterpret_cast<const sockaddr*>(&in4), sizeof in4).value();
  }
  EXPECT_EQ(::inet_pton(AF_INET6, address.c_str(), &in6.sin6_addr), 1) << address;
  return EndpointOf(reinterpret_cast<const sockaddr*>(&in6), sizeof in6).value();
}

std::string BytesOf(const std::string& address) {
  std::string bytes(address.find(':') == std::string::npos ? 4 : 16, '\0');
  EXPECT_EQ(::inet_pton(bytes.size() == 4 ? AF_INET : AF_INET6, address.c_str(), bytes.data()), 1) << address;
  return bytes;
}
capnp::Data::Reader Data(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

struct RuleText {
  bool allow;
  std::string address;
  uint8_t prefix;
  uint16_t port = 0;
};

Egress Make(const std::vector<RuleText>& rules, const std::function<void(Builder)>& configure = nullptr) {
  capnp::MallocMessageBuilder message;
  auto net = message.initRoot<control::UserNet>();
  net.setNetwork4(Data(BytesOf("10.0.2.0")));
  net.setPrefix4(24);
  auto list = net.initRules(static_cast<unsigned>(rules.size()));
  for (unsigned i = 0; i < rules.size(); ++i) {
    list[i].setAllow(rules[i].allow);
    list[i].setAddress(Data(BytesOf(rules[i].address)));
    list[i].setPrefix(rules[i].prefix);
    list[i].setPort(rules[i].port);
  }
  if (configure) configure(net);
  return Egress(net.asReader());
}

bool Allows(const Egress& egress, const Endpoint& to) {
  const auto route = egress.RouteConnection(to);
  EXPECT_EQ(route.has_value(), egress.AllowsDatagram(to));
  return route == to;
}

TEST(Egress, TheWorldIsOpenTheHostAndItsNeighboursAreNot) {
  const Egress egress = Make({});
  for (const char* open : {"192.0.2.1", "8.8.8.8", "10.0.3.1", "128.0.0.1", "169.253.0.1", "2001:db8::1", "fc00::1"}) {
    EXPECT_TRUE(Allows(egress, To(open))) << open;
  }
  for (const char* denied :
       {"127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.251", "255.255.255.255",
        "240.0.0.1", "10.0.2.99", "::1", "::", "fe80::1", "febf::1", "ff02::1", "fd00:ec2::254"}) {
    EXPECT_FALSE(Allows(egress, To(denied))) << denied;
  }
}

TEST(Egress, AnotherFormOfADeniedAddressIsDenied) {
  const Egress egress = Make({});
  for (const char* denied : {"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::169.254.169.254",
                             "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "::ffff:0.0.0.0"}) {
    EXPECT_FALSE(Allows(egress, To(denied))) << denied;
  }
  EXPECT_TRUE(Allows(egress, To("::ffff:192.0.2.1")));
  EXPECT_TRUE(Allows(egress, To("64:ff9b::192.0.2.1")));
}

TEST(Egress, TheMostSpecificRuleCounts) {
  const Egress egress =
      Make({{true, "192.0.0.0", 8}, {false, "192.0.2.0", 24}, {true, "192.0.2.7", 32, 443}, {false, "192.0.2.7", 32}});
  EXPECT_TRUE(Allows(egress, To("192.0.2.7", 443)));
  EXPECT_FALSE(Allows(egress, To("192.0.2.7", 80)));
  EXPECT_FALSE(Allows(egress, To("192.0.2.8", 443)));
  EXPECT_TRUE(Allows(egress, To("192.0.3.8", 443)));
}

TEST(Egress, WhatIsNamedIsOpen) {
  const Egress egress = Make({{true, "127.0.0.1", 32, 8000}, {true, "::1", 128, 80}, {true, "169.254.0.0", 16}});
  EXPECT_TRUE(Allows(egress, To("127.0.0.1", 8000)));
  EXPECT_FALSE(Allows(egress, To("127.0.0.1", 8001)));
  EXPECT_FALSE(Allows(egress, To("127.0.0.2", 8000)));
  EXPECT_TRUE(Allows(egress, To("::1")));
  EXPECT_TRUE(Allows(egress, To("169.254.169.254")));
}

TEST(Egress, OfTwoThatSayTheOppositeTheDenialCounts) {
  const Egress egress = Make({{true, "192.0.2.0", 24}, {false, "192.0.2.0", 24}});
  EXPECT_FALSE(Allows(egress, To("192.0.2.1")));
}

TEST(Egress, WhoAllowsTheWholeWorldHasNotNamedTheHost) {
  const Egress egress = Make({{true, "0.0.0.0", 0}, {true, "::", 0}});
  EXPECT_TRUE(Allows(egress, To("192.0.2.1")));
  EXPECT_FALSE(Allows(egress, To("127.0.0.1")));
  EXPECT_FALSE(Allows(egress, To("::1")));
  // The user's own counts where it is as specific as what is denied anyway.
  EXPECT_TRUE(Allows(Make({{true, "127.0.0.0", 8}}), To("127.0.0.1")));
}

TEST(Egress, ARuleIsOfOneFamily) {
  const Egress ip6 = Make({{true, "::", 0}});
  EXPECT_FALSE(Allows(ip6, To("127.0.0.1")));
  EXPECT_FALSE(Allows(ip6, To("::ffff:127.0.0.1")));
  const Egress none6 = Make({{false, "::", 0}});
  EXPECT_FALSE(Allows(none6, To("2001:db8::1")));
  EXPECT_TRUE(Allows(none6, To("192.0.2.1")));
  const Egress none4 = Make({{false, "0.0.0.0", 0}});
  EXPECT_FALSE(Allows(none4, To("192.0.2.1")));
  EXPECT_TRUE(Allows(none4, To("2001:db8::1")));
}

TEST(Egress, APrefixNeedNotEndWithAByte) {
  const Egress egress = Make({{false, "192.0.2.128", 25}, {false, "2001:db8:8000::", 33}});
  EXPECT_FALSE(Allows(egress, To("192.0.2.128")));
  EXPECT_TRUE(Allows(egress, To("192.0.2.127")));
  EXPECT_FALSE(Allows(egress, To("2001:db8:ffff::1")));
  EXPECT_TRUE(Allows(egress, To("2001:db8:7fff::1")));
}

TEST(Egress, TheHostsResolverIsOpenWhereverItIs) {
  const auto with_resolver = [](bool serves) {
    return Make({{false, "0.0.0.0", 0}}, [serves](Builder net) {
      net.setDns4(Data(BytesOf("127.0.0.53")));
      net.setServesDns(serves);
    });
  };
  EXPECT_TRUE(Allows(with_resolver(true), To("127.0.0.53", 53)));
  EXPECT_FALSE(Allows(with_resolver(true), To("127.0.0.53", 54)));
  EXPECT_FALSE(Allows(with_resolver(true), To("127.0.0.1", 53)));
  EXPECT_FALSE(Allows(with_resolver(false), To("127.0.0.53", 53)));
}

TEST(Egress, ARestrictedGuestReachesForwardsOnly) {
  const Egress egress = Make({{true, "192.0.2.1", 32}}, [](Builder net) {
    net.setRestricted(true);
    net.setDns4(Data(BytesOf("192.0.2.53")));
    net.setServesDns(true);
    auto forward = net.initGuestForwards(1)[0];
    forward.setGuestAddress(Data(BytesOf("10.0.2.100")));
    forward.setGuestPort(80);
    forward.setHostAddress(Data(BytesOf("127.0.0.1")));
    forward.setHostPort(8000);
  });
  EXPECT_FALSE(Allows(egress, To("192.0.2.1")));
  EXPECT_FALSE(Allows(egress, To("192.0.2.53", 53)));
  EXPECT_FALSE(Allows(egress, To("127.0.0.1", 8000)));
  EXPECT_EQ(egress.RouteConnection(To("10.0.2.100", 80)), To("127.0.0.1", 8000));
  EXPECT_FALSE(egress.RouteConnection(To("10.0.2.100", 81)));
  EXPECT_FALSE(egress.AllowsDatagram(To("10.0.2.100", 80)));
}

TEST(Endpoint, WhatIsNoInternetAddressIsNone) {
  sockaddr_in6 in6{};
  const auto* address = reinterpret_cast<const sockaddr*>(&in6);
  for (const sa_family_t family : {AF_UNSPEC, AF_UNIX, AF_NETLINK}) {
    in6.sin6_family = family;
    EXPECT_FALSE(EndpointOf(address, sizeof in6));
  }
  in6.sin6_family = AF_INET6;
  EXPECT_FALSE(EndpointOf(address, sizeof in6 - 1));
  EXPECT_TRUE(EndpointOf(address, sizeof in6));
  in6.sin6_family = AF_INET;
  EXPECT_FALSE(EndpointOf(address, sizeof(sockaddr_in) - 1));
  EXPECT_FALSE(EndpointOf(address, 1));
  EXPECT_FALSE(EndpointOf(nullptr, 0));
}

}  // namespace
}  // namespace bulkhead::usernet
