// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/control.h"

#include <algorithm>

namespace bulkhead::device {
namespace {

enum Class : uint8_t { kReceive = 0, kMac = 1, kVlan = 2, kAnnounce = 3, kPairs = 4, kOffloads = 5, kCoalesce = 6 };
enum ReceiveCommand : uint8_t { kPromiscuous = 0, kAllMulticast = 1 };
enum MacCommand : uint8_t { kTableSet = 0, kAddressSet = 1 };
enum VlanCommand : uint8_t { kVlanAdd = 0, kVlanRemove = 1 };
enum AnnounceCommand : uint8_t { kAcknowledge = 0 };
enum PairsCommand : uint8_t { kPairsSet = 0 };
enum OffloadsCommand : uint8_t { kOffloadsSet = 0 };
enum CoalesceCommand : uint8_t { kTransmitSet = 0, kReceiveSet = 1 };

// As it lies in guest memory.
struct Header {
  uint8_t command_class;
  uint8_t command;
};

// What follows the header, read from front to back.
class Arguments {
 public:
  Arguments(const GuestMemory& memory, std::span<const Piece> pieces)
      : memory_(memory), pieces_(pieces), left_(TotalBytes(pieces)) {}

  template <typename T>
  bool Take(T& value) {
    if (!ReadPieces(memory_, pieces_, at_, std::as_writable_bytes(std::span(&value, 1))).ok()) return false;
    return Skip(sizeof value);
  }
  bool Skip(uint64_t bytes) {
    if (bytes > left_) return false;
    at_ += bytes;
    left_ -= bytes;
    return true;
  }
  // Nothing is missing and nothing too much.
  bool AtEnd() const { return left_ == 0; }

 private:
  const GuestMemory& memory_;
  std::span<const Piece> pieces_;
  uint64_t at_ = 0;
  uint64_t left_;
};

bool ApplyReceive(uint8_t command, Arguments& arguments, ReceiveFilter& filter) {
  uint8_t on;
  if (!arguments.Take(on) || on > 1) return false;
  if (command == kPromiscuous) {
    filter.promiscuous = on == 1;
  } else if (command == kAllMulticast) {
    filter.all_multicast = on == 1;
  } else {
    return false;
  }
  return true;
}

// One of the two tables of VIRTIO_NET_CTRL_MAC_TABLE_SET. More than fit are not told apart: `overflow`.
bool TakeTable(Arguments& arguments, std::vector<MacAddress>& table, bool& overflow) {
  uint32_t count;
  if (!arguments.Take(count)) return false;
  table.clear();
  overflow = count > kMaxFilteredMacs;
  if (overflow) return arguments.Skip(uint64_t{count} * sizeof(MacAddress));
  for (; count != 0; --count) {
    MacAddress mac;
    if (!arguments.Take(mac)) return false;
    table.push_back(mac);
  }
  return true;
}

bool ApplyMacTable(Arguments& arguments, ReceiveFilter& filter) {
  bool many_unicast, many_multicast;
  if (!TakeTable(arguments, filter.unicast, many_unicast)) return false;
  if (!TakeTable(arguments, filter.multicast, many_multicast)) return false;
  // Taking in too much is allowed (§5.1.6.5.1), too little is not.
  filter.promiscuous = filter.promiscuous || many_unicast;
  filter.all_multicast = filter.all_multicast || many_multicast;
  return true;
}

bool ApplyMac(uint8_t command, Arguments& arguments, const ControlRules& rules, ReceiveFilter& filter) {
  if (command == kTableSet) return rules.receive && ApplyMacTable(arguments, filter);
  MacAddress mac;
  if (command != kAddressSet || !rules.set_mac || !arguments.Take(mac)) return false;
  if ((mac[0] & 1) != 0 || (!rules.any_mac && mac != rules.own_mac)) return false;
  filter.mac = mac;
  return true;
}

bool ApplyVlan(uint8_t command, Arguments& arguments, ReceiveFilter& filter) {
  uint16_t vlan;
  if (command > kVlanRemove || !arguments.Take(vlan) || vlan >= kVlans) return false;
  filter.vlans.set(vlan, command == kVlanAdd);
  return true;
}

bool ApplyPairs(uint8_t command, Arguments& arguments, const ControlRules& rules, uint16_t& active_pairs) {
  uint16_t pairs;
  if (command != kPairsSet || rules.max_pairs == 1 || !arguments.Take(pairs)) return false;
  if (pairs == 0 || pairs > rules.max_pairs) return false;
  active_pairs = pairs;
  return true;
}

bool ApplyOffloads(uint8_t command, Arguments& arguments, const ControlRules& rules, uint64_t& offloads_off) {
  uint64_t on;
  if (command != kOffloadsSet || !rules.set_offloads || !arguments.Take(on)) return false;
  if ((on & ~rules.guest_offloads) != 0) return false;
  offloads_off = rules.guest_offloads & ~on;
  return true;
}

bool ApplyCoalescing(uint8_t command, Arguments& arguments, ControlState& state) {
  CoalesceLimits limits;
  if (command > kReceiveSet || !arguments.Take(limits.max_packets) || !arguments.Take(limits.max_usecs)) return false;
  if (limits.max_usecs > kMaxCoalesceUsecs) return false;
  (command == kReceiveSet ? state.receive_coalescing : state.transmit_coalescing) = limits;
  return true;
}

bool Apply(const Header& header, Arguments& arguments, const ControlRules& rules, ControlState& state) {
  switch (header.command_class) {
    case kReceive:
      return rules.receive && ApplyReceive(header.command, arguments, state.filter);
    case kMac:
      return ApplyMac(header.command, arguments, rules, state.filter);
    case kVlan:
      return rules.vlan && ApplyVlan(header.command, arguments, state.filter);
    case kAnnounce:
      if (!rules.announce || header.command != kAcknowledge) return false;
      state.announcing = false;
      return true;
    case kPairs:
      return ApplyPairs(header.command, arguments, rules, state.active_pairs);
    case kOffloads:
      return ApplyOffloads(header.command, arguments, rules, state.offloads_off);
    case kCoalesce:
      return rules.coalesce && ApplyCoalescing(header.command, arguments, state);
    default:
      return false;
  }
}

}  // namespace

bool ApplyControl(const GuestMemory& memory, const Chain& chain, const ControlRules& rules, ControlState& state) {
  Arguments arguments(memory, chain.readable);
  Header header;
  ControlState changed = state;
  if (!arguments.Take(header) || !Apply(header, arguments, rules, changed) || !arguments.AtEnd()) return false;
  state = std::move(changed);
  return true;
}

}  // namespace bulkhead::device
