// SPDX-License-Identifier: Apache-2.0
// Commands of the control queue (virtio 1.2 §5.1.6.5), apart from the device that carries them out: what the driver put
// into a chain becomes a checked change of what it controls, or is refused. Device thread; chains are the guest's:
// hostile.
#pragma once

#include "device-procs/common/virtqueue.h"
#include "device-procs/net/coalescer.h"
#include "device-procs/net/receive_filter.h"

namespace bulkhead::device {

// What a driver may ask for, by what was negotiated and by what its user allows.
struct ControlRules {
  bool receive = false;
  bool vlan = false;
  bool announce = false;
  bool set_mac = false;
  bool any_mac = false;  // to one that is not the interface's own
  MacAddress own_mac{};
  uint16_t max_pairs = 1;  // 1: it cannot choose
  bool coalesce = false;
  bool set_offloads = false;
  uint64_t guest_offloads = 0;  // feature bits of those that were negotiated
};

// A driver that wants to hear later than this does not want to hear.
inline constexpr uint32_t kMaxCoalesceUsecs = 1'000'000;

struct ControlState {
  ReceiveFilter filter;
  uint16_t active_pairs = 1;
  bool announcing = false;
  uint64_t offloads_off = 0;  // feature bits of those that the driver does without, though they were negotiated
  CoalesceLimits receive_coalescing;
  CoalesceLimits transmit_coalescing;

  bool operator==(const ControlState&) const = default;
};

// Whether the command was one that could be carried out; `state` is as it was if not.
bool ApplyControl(const GuestMemory& memory, const Chain& chain, const ControlRules& rules, ControlState& state);

}  // namespace bulkhead::device
