// SPDX-License-Identifier: Apache-2.0
#include "broker/plans/user_net_check.h"

#include "ipc/result.h"

namespace bulkhead::broker {
namespace {

constexpr size_t kIp4Bytes = 4;
constexpr size_t kIp6Bytes = 16;
// More of each no user needs; each rule is looked at for each connection.
constexpr unsigned kMaxRules = 256;
constexpr unsigned kMaxForwards = 64;
constexpr size_t kMaxHostnameBytes = 63;  // of a label (RFC 1035 §2.3.4)
// What the library can do with: packets from the least that a host must take in (RFC 791) up.
constexpr uint16_t kMinMtu = 68;
constexpr uint16_t kMinMtu6 = 1280;  // RFC 8200 §5
constexpr uint16_t kMaxMtu = 65521;
// Room for gateway, resolver and guest.
constexpr uint8_t kMinPrefix4 = 8;
constexpr uint8_t kMaxPrefix4 = 27;

bool IsAddress(capnp::Data::Reader address) { return address.size() == kIp4Bytes || address.size() == kIp6Bytes; }
bool IsAbsentOr(capnp::Data::Reader address, size_t bytes) { return address.size() == 0 || address.size() == bytes; }

bool IsRule(control::EgressRule::Reader rule) {
  return IsAddress(rule.getAddress()) && rule.getPrefix() <= 8 * rule.getAddress().size();
}

bool IsForward(control::GuestForward::Reader forward) {
  return forward.getGuestAddress().size() == kIp4Bytes && forward.getHostAddress().size() == kIp4Bytes &&
         forward.getGuestPort() != 0 && forward.getHostPort() != 0;
}

}  // namespace

void CheckUserNet(control::UserNet::Reader net, unsigned listeners, const std::string& name) {
  const auto require = [&](bool holds, const char* what) {
    if (!holds) throw FatalError(name + ": " + what);
  };
  const bool has4 = net.getNetwork4().size() != 0, has6 = net.getNetwork6().size() != 0;
  require(has4 || has6, "it has neither IPv4 nor IPv6");
  require(IsAbsentOr(net.getNetwork4(), kIp4Bytes) && IsAbsentOr(net.getNetwork6(), kIp6Bytes), "its network is none");
  require(!has4 || (net.getPrefix4() >= kMinPrefix4 && net.getPrefix4() <= kMaxPrefix4),
          "the prefix of its network has 8 to 27 bits");
  require(net.getMtu() >= (has6 ? kMinMtu6 : kMinMtu) && net.getMtu() <= kMaxMtu, "its MTU cannot be");
  require(net.getHostname().size() <= kMaxHostnameBytes, "its host name is too long");
  require(IsAbsentOr(net.getDns4(), kIp4Bytes) && IsAbsentOr(net.getDns6(), kIp6Bytes), "its resolver has no address");
  require(net.getRules().size() <= kMaxRules, "it has more than 256 rules");
  for (auto rule : net.getRules()) require(IsRule(rule), "one of its rules is none");
  require(net.getHostForwards().size() <= kMaxForwards && net.getGuestForwards().size() <= kMaxForwards,
          "it has more than 64 forwards");
  require(net.getHostForwards().size() == listeners, "its forwards have not one socket each");
  for (auto forward : net.getHostForwards()) {
    require(IsAddress(forward.getGuestAddress()) && forward.getGuestPort() != 0, "one of its forwards leads nowhere");
  }
  for (auto forward : net.getGuestForwards()) require(IsForward(forward), "one of its forwards leads nowhere");
}

}  // namespace bulkhead::broker
