// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/egress.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstring>

namespace bulkhead::usernet {
namespace {

constexpr IpAddress kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
constexpr unsigned kMappedBits = 96;
constexpr uint16_t kDnsPort = 53;

struct Denied {
  IpAddress address;
  unsigned prefix_bits;
};

constexpr IpAddress Ip4(uint8_t a, uint8_t b = 0, uint8_t c = 0, uint8_t d = 0) {
  IpAddress address = kMapped;
  address[12] = a;
  address[13] = b;
  address[14] = c;
  address[15] = d;
  return address;
}

// IANA's special-purpose address registries say what these are.
constexpr Denied kDenied[] = {
    {Ip4(0), kMappedBits + 8},          // "this host": Linux takes 0.0.0.0 for the loopback
    {Ip4(127), kMappedBits + 8},        // loopback
    {Ip4(169, 254), kMappedBits + 16},  // link-local, and in it the metadata services of clouds
    {Ip4(224), kMappedBits + 4},        // multicast
    {Ip4(240), kMappedBits + 4},        // reserved, and the limited broadcast
    {IpAddress{}, 128},                 // unspecified: the loopback, as above
    {IpAddress{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, 128},
    {IpAddress{0xFE, 0x80}, 10},                                                         // link-local
    {IpAddress{0xFF}, 8},                                                                // multicast
    {IpAddress{0xFD, 0x00, 0x0E, 0xC2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54}, 128},  // EC2's metadata service
};

bool HasPrefix(const IpAddress& address, const IpAddress& prefix, unsigned bits) {
  const unsigned bytes = bits / 8;
  if (std::memcmp(address.data(), prefix.data(), bytes) != 0) return false;
  if (bits % 8 == 0) return true;
  const auto mask = static_cast<uint8_t>(0xFF << (8 - bits % 8));
  return ((address[bytes] ^ prefix[bytes]) & mask) == 0;
}

IpAddress TakeAddress(capnp::Data::Reader from) {
  IpAddress address = from.size() == 4 ? kMapped : IpAddress{};
  std::copy(from.begin(), from.end(), address.end() - static_cast<ptrdiff_t>(from.size()));
  return address;
}

// The IPv4 address that an IPv6 address stands for where somebody translates: the compatible ones of old (RFC 4291
// §2.5.5.1) and NAT64's (RFC 6052 §2.1).
std::optional<IpAddress> Embedded(const IpAddress& address) {
  constexpr IpAddress kNat64{0, 0x64, 0xFF, 0x9B};
  const bool compatible = HasPrefix(address, IpAddress{}, kMappedBits) && !HasPrefix(address, IpAddress{}, 127);
  if (!compatible && !HasPrefix(address, kNat64, kMappedBits)) return std::nullopt;
  return Ip4(address[12], address[13], address[14], address[15]);
}

}  // namespace

bool IsIp4(const IpAddress& address) { return HasPrefix(address, kMapped, kMappedBits); }

std::optional<Endpoint> EndpointOf(const sockaddr* address, socklen_t bytes) {
  if (address == nullptr || bytes < sizeof(sa_family_t)) return std::nullopt;
  Endpoint endpoint;
  if (address->sa_family == AF_INET && bytes >= sizeof(sockaddr_in)) {
    sockaddr_in in;
    std::memcpy(&in, address, sizeof in);
    endpoint.address = kMapped;
    std::memcpy(endpoint.address.data() + kMappedBits / 8, &in.sin_addr, sizeof in.sin_addr);
    endpoint.port = ntohs(in.sin_port);
    return endpoint;
  }
  if (address->sa_family == AF_INET6 && bytes >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in;
    std::memcpy(&in, address, sizeof in);
    std::memcpy(endpoint.address.data(), &in.sin6_addr, sizeof in.sin6_addr);
    endpoint.port = ntohs(in.sin6_port);
    return endpoint;
  }
  return std::nullopt;
}

Egress::Egress(control::UserNet::Reader settings) : restricted_(settings.getRestricted()) {
  for (const bool allow : {false, true}) {
    for (auto rule : settings.getRules()) {
      if (rule.getAllow() != allow) continue;
      const auto address = rule.getAddress();
      rules_.push_back({.allow = allow,
                        .address = TakeAddress(address),
                        .prefix_bits = rule.getPrefix() + (address.size() == 4 ? kMappedBits : 0),
                        .port = rule.getPort()});
    }
  }
  // What the guest's own network has not is none of the host's networks that happen to have the same numbers.
  if (settings.hasNetwork4()) {
    rules_.push_back({.allow = false,
                      .address = TakeAddress(settings.getNetwork4()),
                      .prefix_bits = kMappedBits + settings.getPrefix4()});
  }
  for (const Denied& denied : kDenied) {
    rules_.push_back({.allow = false, .address = denied.address, .prefix_bits = denied.prefix_bits});
  }
  // Of two for the same addresses the one with a port is the more specific, then the user's, and then the denial.
  std::ranges::stable_sort(rules_, [](const Rule& a, const Rule& b) {
    if (a.prefix_bits != b.prefix_bits) return a.prefix_bits > b.prefix_bits;
    return a.port != 0 && b.port == 0;
  });
  if (settings.getServesDns()) {
    for (const auto& resolver : {settings.getDns4(), settings.getDns6()}) {
      if (resolver.size() != 0) resolvers_.push_back({TakeAddress(resolver), kDnsPort});
    }
  }
  for (auto forward : settings.getGuestForwards()) {
    forwards_.push_back({{TakeAddress(forward.getGuestAddress()), forward.getGuestPort()},
                         {TakeAddress(forward.getHostAddress()), forward.getHostPort()}});
  }
}

std::optional<Endpoint> Egress::RouteConnection(const Endpoint& to) const {
  for (const Forward& forward : forwards_) {
    if (forward.from == to) return forward.to;
  }
  if (!Allows(to)) return std::nullopt;
  return to;
}

bool Egress::Allows(const Endpoint& to) const {
  if (restricted_) return false;
  if (std::ranges::find(resolvers_, to) != resolvers_.end()) return true;
  if (!RulesAllow(to)) return false;
  const auto embedded = Embedded(to.address);
  return !embedded || RulesAllow({*embedded, to.port});
}

bool Egress::RulesAllow(const Endpoint& to) const {
  const bool is_ip4 = IsIp4(to.address);
  for (const Rule& rule : rules_) {
    // One for all of IPv6 is none for the mapped addresses in it.
    if (IsIp4(rule.address) != is_ip4 || (rule.port != 0 && rule.port != to.port)) continue;
    if (HasPrefix(to.address, rule.address, rule.prefix_bits)) return rule.allow;
  }
  return true;
}

}  // namespace bulkhead::usernet
