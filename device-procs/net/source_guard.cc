// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/source_guard.h"

#include <algorithm>
#include <utility>

namespace bulkhead::device {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr uint16_t kTypeIp4 = 0x0800;
constexpr uint16_t kTypeArp = 0x0806;
constexpr uint16_t kTypeIp6 = 0x86DD;

constexpr uint8_t kUdp = 17;
constexpr uint8_t kIcmp6 = 58;
// Extension headers of IPv6 (RFC 8200 §4) that stand before a message's own.
constexpr uint8_t kHopByHop = 0;
constexpr uint8_t kRouting = 43;
constexpr uint8_t kFragment = 44;
constexpr uint8_t kDestination = 60;

bool IsExtension(uint8_t header) {
  return header == kHopByHop || header == kRouting || header == kDestination || header == kFragment;
}

constexpr uint16_t kDhcpServer = 67;

// Neighbour discovery (RFC 4861 §4) and multicast listener discovery (RFC 3810 §5).
enum Icmp6 : uint8_t {
  kListenerReport = 131,
  kListenerDone = 132,
  kRouterSolicitation = 133,
  kRouterAdvertisement = 134,
  kNeighbourSolicitation = 135,
  kNeighbourAdvertisement = 136,
  kRedirect = 137,
  kListenerReport2 = 143,
};

constexpr size_t kIp4Bytes = 20;
constexpr size_t kIp6Bytes = 40;
constexpr size_t kArpBytes = 28;

uint16_t BigEndian16(Bytes bytes, size_t at) { return static_cast<uint16_t>(bytes[at] << 8 | bytes[at + 1]); }

bool IsZero(Bytes bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

template <typename Address>
bool Contains(const std::vector<Address>& addresses, Bytes address) {
  return std::any_of(addresses.begin(), addresses.end(),
                     [&](const Address& each) { return std::ranges::equal(each, address); });
}

Ip6Address LinkLocal(const MacAddress& mac) {
  return {0xFE,   0x80,   0,    0,    0,      0,      0,     0, static_cast<uint8_t>(mac[0] ^ 2),
          mac[1], mac[2], 0xFF, 0xFE, mac[3], mac[4], mac[5]};
}

}  // namespace

SourceGuard::SourceGuard(SourceRules rules)
    : rules_(std::move(rules)), by_ip_(!rules_.ip4.empty() || !rules_.ip6.empty()) {
  if (!rules_.ip6.empty()) rules_.ip6.push_back(LinkLocal(rules_.mac));
}

bool SourceGuard::IsOwn(Bytes address) const { return std::ranges::equal(rules_.mac, address); }

bool SourceGuard::Allows(std::span<const std::byte> head) const {
  const Bytes frame(reinterpret_cast<const uint8_t*>(head.data()), head.size());
  if (frame.size() < kEthernetBytes) return false;
  if (!rules_.any_mac && !IsOwn(frame.subspan(6, 6))) return false;
  if (!by_ip_) return true;
  const Bytes packet = frame.subspan(kEthernetBytes);
  switch (BigEndian16(frame, 12)) {
    case kTypeIp4:
      return AllowsIp4(packet);
    case kTypeArp:
      return AllowsArp(packet);
    case kTypeIp6:
      return AllowsIp6(packet);
    default:
      return false;
  }
}

bool SourceGuard::AllowsIp4(Bytes packet) const {
  if (packet.size() < kIp4Bytes || packet[0] >> 4 != 4 || rules_.ip4.empty()) return false;
  const Bytes source = packet.subspan(12, 4);
  if (Contains(rules_.ip4, source)) return true;
  // A host that asks for its address has none yet (RFC 2131 §4.1).
  const size_t header = size_t{4} * (packet[0] & 0xF);
  return IsZero(source) && packet[9] == kUdp && header >= kIp4Bytes && packet.size() >= header + 4 &&
         (BigEndian16(packet, 6) & 0x3FFF) == 0 && BigEndian16(packet, header + 2) == kDhcpServer;
}

bool SourceGuard::AllowsArp(Bytes packet) const {
  // Ethernet and IPv4 (RFC 826).
  constexpr uint8_t kKinds[] = {0, 1, 8, 0, 6, 4};
  if (packet.size() < kArpBytes || !std::ranges::equal(packet.first(6), kKinds)) return false;
  const Bytes sender = packet.subspan(14, 4);
  if (!rules_.any_mac && !IsOwn(packet.subspan(8, 6))) return false;
  // A probe comes from no address yet (RFC 5227 §2.1.1).
  return Contains(rules_.ip4, sender) || (IsZero(sender) && !rules_.ip4.empty());
}

bool SourceGuard::AllowsIp6(Bytes packet) const {
  if (packet.size() < kIp6Bytes || packet[0] >> 4 != 6) return false;
  const Bytes source = packet.subspan(8, 16);
  // A host that looks whether its address is free has none yet (RFC 4862 §5.4.2).
  const bool unspecified = IsZero(source) && !rules_.ip6.empty();
  if (!unspecified && !Contains(rules_.ip6, source)) return false;
  uint8_t next = packet[6];
  size_t at = kIp6Bytes;
  for (;;) {
    if (next == kIcmp6) return at < packet.size() && AllowsIcmp6(packet.subspan(at), unspecified);
    if (!IsExtension(next)) return !unspecified;
    if (at + 8 > packet.size()) return false;
    // What is said of neighbours is never in pieces (RFC 6980), where it could not be looked at.
    const bool fragment = std::exchange(next, packet[at]) == kFragment;
    if (fragment) return next != kIcmp6 && !IsExtension(next) && !unspecified;
    at += 8 + size_t{8} * packet[at + 1];
  }
}

bool SourceGuard::AllowsIcmp6(Bytes message, bool unspecified) const {
  constexpr size_t kHeaderBytes = 8;
  constexpr size_t kTargetBytes = 16;
  switch (message[0]) {
    case kRouterAdvertisement:
    case kRedirect:
      return false;
    case kListenerReport:
    case kListenerDone:
    case kListenerReport2:
      return true;
    case kRouterSolicitation:
      return message.size() >= kHeaderBytes && AllowsOptions(message.subspan(kHeaderBytes));
    case kNeighbourSolicitation:
    case kNeighbourAdvertisement: {
      if (message.size() < kHeaderBytes + kTargetBytes) return false;
      const Bytes target = message.subspan(kHeaderBytes, kTargetBytes);
      // To ask for any is fine, but to have only what it may.
      const bool claims = message[0] == kNeighbourAdvertisement || unspecified;
      return (!claims || Contains(rules_.ip6, target)) && AllowsOptions(message.subspan(kHeaderBytes + kTargetBytes));
    }
    default:
      return !unspecified;
  }
}

// Link-layer addresses of the sender (RFC 4861 §4.6.1) are its own.
bool SourceGuard::AllowsOptions(Bytes options) const {
  constexpr uint8_t kSourceAddress = 1;
  constexpr uint8_t kTargetAddress = 2;
  while (options.size() >= 8) {
    const size_t bytes = size_t{8} * options[1];
    if (bytes == 0 || bytes > options.size()) return false;
    const bool address = options[0] == kSourceAddress || options[0] == kTargetAddress;
    if (address && !rules_.any_mac && !IsOwn(options.subspan(2, 6))) return false;
    options = options.subspan(bytes);
  }
  return options.empty();
}

}  // namespace bulkhead::device
