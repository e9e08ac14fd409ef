// SPDX-License-Identifier: Apache-2.0
// The frames of the network benchmark's guest, each behind virtio's header (virtio 1.2 §5.1.6).
#pragma once

#include "tests/bench/net_message.h"

namespace payload {

using namespace bulkhead::bench;

class Framing {
 public:
  static constexpr uint32_t kHeaderBytes = 12;

  Framing() = default;
  // Datagrams to that port of the host of user-mode networking; 0: a bare protocol.
  Framing(const uint8_t* mac, uint16_t udp_port) : udp_port_(udp_port) { __builtin_memcpy(mac_, mac, sizeof mac_); }

  bool udp() const { return udp_port_ != 0; }
  // A frame of so many bytes; what there is room for of the message. Returns its size with the header.
  uint32_t Build(uint8_t* at, const Message& message, uint32_t bytes) const;
  // That this machine is there (a gratuitous ARP, RFC 5227 §1.1).
  uint32_t BuildArp(uint8_t* at) const;
  // Whether a received frame is one of that operation.
  bool Is(const uint8_t* at, Operation operation, uint32_t bytes) const;
  // How many buffers a received frame has.
  static uint16_t Rooms(const uint8_t* at) { return static_cast<uint16_t>(at[10] | at[11] << 8); }

 private:
  uint8_t mac_[6] = {};
  uint16_t udp_port_ = 0;
};

}  // namespace payload
