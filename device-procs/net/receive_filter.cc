// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/receive_filter.h"

#include <algorithm>
#include <cstring>

namespace bulkhead::device {
namespace {

constexpr uint16_t kTypeVlan = 0x8100;
constexpr MacAddress kBroadcast{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

uint16_t BigEndian16(std::span<const std::byte> bytes, size_t at) {
  return static_cast<uint16_t>(std::to_integer<unsigned>(bytes[at]) << 8 | std::to_integer<unsigned>(bytes[at + 1]));
}

}  // namespace

bool ReceiveFilter::Wants(std::span<const std::byte> head) const {
  if (head.size() < kEthernetBytes) return false;
  if (by_vlan && BigEndian16(head, 12) == kTypeVlan) {
    if (head.size() < kFilteredBytes || !vlans.test(BigEndian16(head, kEthernetBytes) % kVlans)) return false;
  }
  if (promiscuous) return true;
  MacAddress to;
  std::memcpy(to.data(), head.data(), to.size());
  if (to == mac || to == kBroadcast) return true;
  if ((to[0] & 1) == 0) return std::find(unicast.begin(), unicast.end(), to) != unicast.end();
  return all_multicast || std::find(multicast.begin(), multicast.end(), to) != multicast.end();
}

}  // namespace bulkhead::device
