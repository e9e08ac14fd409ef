// SPDX-License-Identifier: Apache-2.0
// Which frames the driver wants to get (virtio 1.2 §5.1.6.5): what it said by the control queue. Each pair thread has a
// copy. Frames may be anyone's.
#pragma once

#include <bitset>
#include <cstddef>
#include <span>
#include <vector>

#include "device-procs/net/packet.h"

namespace bulkhead::device {

inline constexpr size_t kMaxFilteredMacs = 64;  // of each kind; of more than that all are taken in
inline constexpr size_t kVlans = 4096;

struct ReceiveFilter {
  bool promiscuous = true;  // until the driver has said what it wants
  bool all_multicast = false;
  MacAddress mac{};
  std::vector<MacAddress> unicast = {};
  std::vector<MacAddress> multicast = {};
  bool by_vlan = false;
  std::bitset<kVlans> vlans = {};

  // `head`: the beginning of a frame, kFilteredBytes of it or all.
  bool Wants(std::span<const std::byte> head) const;
  bool operator==(const ReceiveFilter&) const = default;
};

inline constexpr size_t kFilteredBytes = kEthernetBytes + 4;

}  // namespace bulkhead::device
