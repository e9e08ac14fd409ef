// SPDX-License-Identifier: Apache-2.0
// A guest of frames at the net process's end of a packet link: so much of Ethernet, ARP, DHCP, UDP and TCP as shows
// what user-mode networking does with it. One thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "broker/device_plan.h"
#include "ipc/packet_ring.h"

namespace bulkhead::test {

// An IPv4 address as a number.
constexpr uint32_t Ip4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return uint32_t{a} << 24 | uint32_t{b} << 16 | uint32_t{c} << 8 | d;
}

struct Lease {
  uint32_t address = 0;
  uint32_t router = 0;
  uint32_t resolver = 0;
  std::string hostname;
};

class PacketGuest {
 public:
  static constexpr uint32_t kAddress = Ip4(10, 0, 2, 15), kHost = Ip4(10, 0, 2, 2), kResolver = Ip4(10, 0, 2, 3);

  // The other end of a usernet process's link.
  explicit PacketGuest(const broker::PlannedPackets& theirs);

  void Send(const std::string& frame);
  // The next frame; empty after so long.
  std::string Receive(int timeout_ms);

  std::optional<Lease> AskForLease();
  // The payload that comes back from there to a datagram; nothing after so long.
  std::optional<std::string> Ask(uint32_t address, uint16_t port, const std::string& question, int timeout_ms);
  void SendDatagram(uint32_t address, uint16_t port, uint16_t from_port, const std::string& payload);
  // The payload and sender's port of the next datagram to this port.
  std::optional<std::pair<std::string, uint16_t>> ReceiveDatagram(uint16_t to_port, int timeout_ms);
  // What the server there says first; nothing if it refuses.
  std::optional<std::string> Fetch(uint32_t address, uint16_t port);
  // Takes one connection to this port, and says this.
  bool Serve(uint16_t port, const std::string& text);
  // IPv6, to the host's address in the guest's network; what comes back is not waited for. The first shows it where the
  // guest is (RFC 4861 §4.3).
  void SolicitNeighbour6();
  void SendDatagram6(uint16_t port, const std::string& payload);
  void SendSyn6(uint16_t port);
  bool Ping(uint32_t address, int timeout_ms);

 private:
  struct Tcp {
    uint16_t from_port, to_port;
    uint32_t sequence, acknowledged;
    uint8_t flags;
    std::string payload;
  };
  void SendIp(uint8_t protocol, uint32_t to, const std::string& payload);
  void SendTcp(uint32_t to, const Tcp& segment);
  // The next packet of this protocol to this guest, behind its IP header; ARP is answered meanwhile.
  std::optional<std::string> ReceiveIp(uint8_t protocol, int timeout_ms);
  std::optional<Tcp> ReceiveTcp(uint16_t to_port, int timeout_ms);

  OwnFd doorbell_, peer_;
  PacketLinkMemory* memory_;
  PacketProducer sending_;
  PacketConsumer receiving_;
  uint16_t next_port_ = 40000;
};

}  // namespace bulkhead::test
