// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/source_guard.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <string>

namespace bulkhead::device {
namespace {

constexpr MacAddress kOwn{2, 0, 0, 0, 0, 1}, kOther{2, 0, 0, 0, 0, 2};
constexpr Ip4Address kIp4{192, 0, 2, 7}, kOtherIp4{192, 0, 2, 8};
constexpr const char *kIp6 = "2001:db8::7", *kOtherIp6 = "2001:db8::8", *kLinkLocal = "fe80::ff:fe00:1";

Ip6Address Ip6(const std::string& text) {
  Ip6Address address;
  EXPECT_EQ(::inet_pton(AF_INET6, text.c_str(), address.data()), 1);
  return address;
}

class Bytes {
 public:
  Bytes& U8(std::initializer_list<int> values) {
    for (const int value : values) bytes_.push_back(static_cast<std::byte>(value));
    return *this;
  }
  template <typename Address>
  Bytes& Add(const Address& address) {
    for (const uint8_t byte : address) bytes_.push_back(std::byte{byte});
    return *this;
  }
  Bytes& Zeroes(size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  const std::vector<std::byte>& get() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

Bytes Frame(uint16_t type, const MacAddress& from = kOwn) {
  return Bytes().Zeroes(6).Add(from).U8({type >> 8, type & 0xFF});
}
std::vector<std::byte> Ip4Frame(const Ip4Address& from, uint16_t port = 80) {
  return Frame(0x0800)
      .U8({0x45})
      .Zeroes(8)
      .U8({17, 0, 0})
      .Add(from)
      .Zeroes(4)
      .Zeroes(2)
      .U8({port >> 8, port & 0xFF})
      .get();
}
std::vector<std::byte> Arp(const MacAddress& mac, const Ip4Address& ip) {
  return Frame(0x0806).U8({0, 1, 8, 0, 6, 4, 0, 1}).Add(mac).Add(ip).Zeroes(10).get();
}
Bytes Ip6Frame(const std::string& from, int next) {
  return Frame(0x86DD).U8({0x60}).Zeroes(5).U8({next, 255}).Add(Ip6(from)).Zeroes(16);
}
std::vector<std::byte> Neighbour(const std::string& from, int type, const std::string& target, const MacAddress& mac) {
  return Ip6Frame(from, 58).U8({type}).Zeroes(7).Add(Ip6(target)).U8({2, 1}).Add(mac).get();
}

const SourceGuard kByMac({.mac = kOwn});
const SourceGuard kByIp({.mac = kOwn, .ip4 = {kIp4}, .ip6 = {Ip6(kIp6)}});

TEST(SourceGuard, OnlyItsOwnMacMaySend) {
  EXPECT_TRUE(kByMac.Allows(Frame(0x1234).get()));
  EXPECT_FALSE(kByMac.Allows(Frame(0x1234, kOther).get()));
  EXPECT_TRUE(SourceGuard({.mac = kOwn, .any_mac = true}).Allows(Frame(0x1234, kOther).get()));
  const Bytes frame = Frame(0x1234);
  EXPECT_FALSE(kByMac.Allows(std::span(frame.get()).first(13)));
}

TEST(SourceGuard, WithAddressesNothingElseLeaves) {
  EXPECT_FALSE(kByIp.Allows(Frame(0x1234).get()));
  EXPECT_FALSE(kByIp.Allows(Frame(0x8100).get())) << "a VLAN is another network";
  EXPECT_FALSE(kByIp.Allows(Frame(0x0800, kOther).get()));
  EXPECT_FALSE(kByIp.Allows(Frame(0x0800).Zeroes(20).get()));
  EXPECT_FALSE(kByIp.Allows(Frame(0x86DD).Zeroes(40).get()));
}

TEST(SourceGuard, Ip4ComesFromItsAddressOrAsksForOne) {
  EXPECT_TRUE(kByIp.Allows(Ip4Frame(kIp4)));
  EXPECT_FALSE(kByIp.Allows(Ip4Frame(kOtherIp4)));
  EXPECT_TRUE(kByIp.Allows(Ip4Frame({}, 67)));
  EXPECT_FALSE(kByIp.Allows(Ip4Frame({}, 80)));
  EXPECT_FALSE(SourceGuard({.mac = kOwn, .ip6 = {Ip6(kIp6)}}).Allows(Ip4Frame(kIp4))) << "has none of IPv4";
}

TEST(SourceGuard, ArpSaysOnlyWhatIsTrue) {
  EXPECT_TRUE(kByIp.Allows(Arp(kOwn, kIp4)));
  EXPECT_TRUE(kByIp.Allows(Arp(kOwn, {})));
  EXPECT_FALSE(kByIp.Allows(Arp(kOwn, kOtherIp4)));
  EXPECT_FALSE(kByIp.Allows(Arp(kOther, kIp4)));
  const auto arp = Arp(kOwn, kIp4);
  EXPECT_FALSE(kByIp.Allows(std::span(arp).first(41)));
}

TEST(SourceGuard, Ip6ComesFromItsAddresses) {
  for (const char* from : {kIp6, kLinkLocal}) EXPECT_TRUE(kByIp.Allows(Ip6Frame(from, 6).get())) << from;
  for (const char* from : {kOtherIp6, "fe80::1", "::"}) EXPECT_FALSE(kByIp.Allows(Ip6Frame(from, 6).get())) << from;
}

TEST(SourceGuard, NeighboursAreToldOnlyWhatIsTrue) {
  constexpr int kSolicitation = 135, kAdvertisement = 136;
  EXPECT_TRUE(kByIp.Allows(Neighbour(kIp6, kAdvertisement, kIp6, kOwn)));
  EXPECT_FALSE(kByIp.Allows(Neighbour(kIp6, kAdvertisement, kOtherIp6, kOwn)));
  EXPECT_FALSE(kByIp.Allows(Neighbour(kIp6, kAdvertisement, kIp6, kOther)));
  EXPECT_TRUE(kByIp.Allows(Neighbour(kIp6, kSolicitation, kOtherIp6, kOwn)));
  EXPECT_TRUE(kByIp.Allows(Ip6Frame("::", 58).U8({kSolicitation}).Zeroes(7).Add(Ip6(kLinkLocal)).get()));
  EXPECT_FALSE(kByIp.Allows(Ip6Frame("::", 58).U8({kSolicitation}).Zeroes(7).Add(Ip6(kOtherIp6)).get()));
  EXPECT_FALSE(kByIp.Allows(Ip6Frame(kIp6, 58).U8({134}).Zeroes(15).get())) << "it is no router";
  EXPECT_FALSE(kByIp.Allows(Ip6Frame(kIp6, 58).U8({137}).Zeroes(39).get()));
}

TEST(SourceGuard, NothingHidesBehindExtensionHeaders) {
  const auto behind = [](int header, int type) {
    return Ip6Frame(kIp6, header).U8({58, 0}).Zeroes(6).U8({type}).Zeroes(23).get();
  };
  for (const int header : {0, 43, 60}) {
    EXPECT_FALSE(kByIp.Allows(behind(header, 134))) << header;
    EXPECT_TRUE(kByIp.Allows(behind(header, 128))) << header;
  }
  EXPECT_FALSE(kByIp.Allows(behind(44, 128))) << "in pieces";
  EXPECT_FALSE(kByIp.Allows(Ip6Frame(kIp6, 0).U8({0, 255}).Zeroes(46).get())) << "further than is looked at";
  EXPECT_FALSE(kByIp.Allows(Ip6Frame(kIp6, 58).get()));
}

TEST(SourceGuard, WhatEndsAnywhereIsNoneOfItsBusiness) {
  for (const auto& frame : {Ip4Frame({}, 67), Arp(kOwn, kIp4), Neighbour(kIp6, 136, kIp6, kOwn)}) {
    ASSERT_TRUE(kByIp.Allows(frame));
    for (size_t bytes = 0; bytes < frame.size(); ++bytes) (void)kByIp.Allows(std::span(frame).first(bytes));
  }
}

}  // namespace
}  // namespace bulkhead::device
