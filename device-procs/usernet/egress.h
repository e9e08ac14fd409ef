// SPDX-License-Identifier: Apache-2.0
// Where a guest may go from user-mode networking: rules by address and port, of which the most specific that fits
// counts, in whatever order they stand. Some of them are always there: the host itself, and what only its neighbours
// should reach, is denied unless a rule names it. Usernet process, device thread; immutable.
// Destinations are the guest's wishes: hostile.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "ipc/control.capnp.h"

namespace bulkhead::usernet {

// Of IPv4 in its mapped form (RFC 4291 §2.5.5.2), so that there is one form of each.
using IpAddress = std::array<uint8_t, 16>;

struct Endpoint {
  IpAddress address{};
  uint16_t port = 0;

  bool operator==(const Endpoint&) const = default;
};

// Nothing for what is no address of IPv4 or IPv6.
std::optional<Endpoint> EndpointOf(const sockaddr* address, socklen_t bytes);
bool IsIp4(const IpAddress& address);

class Egress {
 public:
  // Checked by the broker.
  explicit Egress(control::UserNet::Reader settings);

  // Where a TCP connection to there leads: to the target of a forward, there, or nowhere.
  std::optional<Endpoint> RouteConnection(const Endpoint& to) const;
  // Whether a datagram may go there; of ICMP with port 0.
  bool AllowsDatagram(const Endpoint& to) const { return Allows(to); }

 private:
  struct Rule {
    bool allow = false;
    IpAddress address{};
    unsigned prefix_bits = 0;  // of the mapped form
    uint16_t port = 0;         // 0: any
  };
  struct Forward {
    Endpoint from;
    Endpoint to;
  };

  bool Allows(const Endpoint& to) const;
  bool RulesAllow(const Endpoint& to) const;

  bool restricted_ = false;
  std::vector<Rule> rules_;  // the most specific first
  std::vector<Endpoint> resolvers_;
  std::vector<Forward> forwards_;
};

}  // namespace bulkhead::usernet
