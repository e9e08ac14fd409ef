// SPDX-License-Identifier: Apache-2.0
// Keeps a guest from speaking as somebody else: which frames may leave it, by their addresses. By default those from
// its own MAC address; with a list of IP addresses only untagged IPv4, ARP and IPv6 from these, and of neighbour
// discovery (RFC 4861) only what a host says of itself. Pair threads; immutable. Frames are the guest's: hostile, and
// looked at in a private copy of their beginning, which is what is sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "device-procs/net/packet.h"

namespace bulkhead::device {

using Ip4Address = std::array<uint8_t, 4>;
using Ip6Address = std::array<uint8_t, 16>;

struct SourceRules {
  MacAddress mac{};
  bool any_mac = false;
  std::vector<Ip4Address> ip4 = {};
  std::vector<Ip6Address> ip6 =
      {};  // its link-local address by its MAC address (RFC 4291 appendix A) goes without saying
};

// As much of a frame as has to be looked at, and copied: all headers up to those of neighbour discovery.
inline constexpr size_t kGuardedBytes = 128;

class SourceGuard {
 public:
  explicit SourceGuard(SourceRules rules);

  // `head`: the first kGuardedBytes of a frame, or all of it.
  bool Allows(std::span<const std::byte> head) const;
  const SourceRules& rules() const { return rules_; }

 private:
  bool AllowsIp4(std::span<const uint8_t> packet) const;
  bool AllowsArp(std::span<const uint8_t> packet) const;
  bool AllowsIp6(std::span<const uint8_t> packet) const;
  bool AllowsIcmp6(std::span<const uint8_t> message, bool unspecified) const;
  bool AllowsOptions(std::span<const uint8_t> options) const;
  bool IsOwn(std::span<const uint8_t> address) const;

  SourceRules rules_;
  bool by_ip_;
};

}  // namespace bulkhead::device
