// SPDX-License-Identifier: Apache-2.0
// The other end of the network benchmark's guest (tests/payload/bench-net.cc): does what its messages say until its
// standard input ends. One thread.
//
//   net-peer packet INTERFACE   frames at the host's side of a tap
//   net-peer udp PORT           datagrams to that port of the loopback interface
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "tests/bench/net_message.h"

namespace {

using namespace bulkhead::bench;

constexpr unsigned kBatch = 32;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "net-peer: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

// A message with all that stands before it, and whom it is from.
struct Received {
  size_t bytes = 0;
  Message message{};
  sockaddr_storage from{};
  socklen_t from_bytes = sizeof(sockaddr_storage);
};

class Peer {
 public:
  Peer(int socket, size_t message_offset) : socket_(socket), message_offset_(message_offset) {}
  virtual ~Peer() = default;

  int socket() const { return socket_; }
  std::optional<Received> Take();
  void Echo(const Received& received);
  // Sends as much as is taken at once of what was asked for.
  void Flood();
  virtual void BeginFlood(const Received& asked) = 0;

 protected:
  // To the address of the one who asked for it.
  void SetFlood(std::vector<uint8_t> frame, const Received& asked);
  // What the sender sees come from elsewhere.
  virtual void TurnAround(uint8_t*) {}
  const uint8_t* buffer() const { return buffer_.data(); }

 private:
  const int socket_;
  const size_t message_offset_;
  std::array<uint8_t, 2048> buffer_{};
  std::vector<uint8_t> flood_;
  Received flood_to_;
};

std::optional<Received> Peer::Take() {
  Received received;
  const ssize_t bytes = ::recvfrom(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT,
                                   reinterpret_cast<sockaddr*>(&received.from), &received.from_bytes);
  if (bytes < static_cast<ssize_t>(message_offset_ + sizeof(Message))) return std::nullopt;
  received.bytes = static_cast<size_t>(bytes);
  std::memcpy(&received.message, buffer_.data() + message_offset_, sizeof received.message);
  return received;
}

void Peer::Echo(const Received& received) {
  TurnAround(buffer_.data());
  ::sendto(socket_, buffer_.data(), received.bytes, 0, reinterpret_cast<const sockaddr*>(&received.from),
           received.from_bytes);
}

void Peer::SetFlood(std::vector<uint8_t> frame, const Received& asked) {
  flood_ = std::move(frame);
  flood_to_ = asked;
}

void Peer::Flood() {
  iovec vector{flood_.data(), flood_.size()};
  std::array<mmsghdr, kBatch> messages{};
  for (mmsghdr& each : messages) {
    each.msg_hdr.msg_iov = &vector;
    each.msg_hdr.msg_iovlen = 1;
    each.msg_hdr.msg_name = &flood_to_.from;
    each.msg_hdr.msg_namelen = flood_to_.from_bytes;
  }
  // What finds the tap's queue full is lost, as it is for anyone.
  if (::sendmmsg(socket_, messages.data(), messages.size(), 0) < 0 && errno != ENOBUFS) Fail("send");
}

std::vector<uint8_t> MessageOf(size_t offset, size_t bytes) {
  std::vector<uint8_t> data(bytes);
  const Message message{kFlood, 0};
  std::memcpy(data.data() + offset, &message, sizeof message);
  return data;
}

// Each frame behind a virtio_net_hdr, so that the kernel takes segments that are not cut yet.
class PacketPeer final : public Peer {
 public:
  static constexpr size_t kHeader = sizeof(PacketHeader);

  explicit PacketPeer(const char* interface) : Peer(Open(interface), kHeader + kEthernetBytes) {}

  void BeginFlood(const Received& asked) override {
    std::array<uint8_t, 6> to, from;
    std::memcpy(to.data(), buffer() + kHeader + 6, 6);
    std::memcpy(from.data(), buffer() + kHeader, 6);
    const size_t bytes = asked.message.flood_bytes;
    std::vector<uint8_t> packet = MessageOf(kHeader + kEthernetBytes, kHeader + bytes);
    if (bytes > kWholeFrame) {
      std::memcpy(packet.data(), &kSegmentHeader, kHeader);
      PutSegment(packet.data() + kHeader, to.data(), from.data(), static_cast<uint32_t>(bytes));
      Received as_ip = asked;
      // Who cuts it goes by the protocol that it is sent with.
      reinterpret_cast<sockaddr_ll&>(as_ip.from).sll_protocol = htons(kEtherTypeIp4);
      return SetFlood(std::move(packet), as_ip);
    }
    PutEthernet(packet.data() + kHeader, to.data(), from.data(), kEtherTypeTest);
    SetFlood(std::move(packet), asked);
  }

 protected:
  void TurnAround(uint8_t* packet) override {
    for (size_t i = kHeader; i < kHeader + 6; ++i) std::swap(packet[i], packet[i + 6]);
  }

 private:
  static int Open(const char* interface) {
    const int socket = ::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(kEtherTypeTest));
    const int on = 1;
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(kEtherTypeTest);
    address.sll_ifindex = static_cast<int>(if_nametoindex(interface));
    if (socket < 0 || ::setsockopt(socket, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0 ||
        ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      Fail(interface);
    }
    return socket;
  }
};

class UdpPeer final : public Peer {
 public:
  explicit UdpPeer(const char* port) : Peer(Open(port), 0) {}

  void BeginFlood(const Received& asked) override {
    constexpr size_t kHeaders = kEthernetBytes + kIp4Bytes + kUdpBytes;
    SetFlood(MessageOf(0, asked.message.flood_bytes - kHeaders), asked);
  }

 private:
  static int Open(const char* port) {
    const int socket = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (socket < 0 || ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Fail("bind");
    return socket;
  }
};

void Serve(Peer& peer) {
  bool flooding = false;
  for (;;) {
    std::array<pollfd, 2> files{{{peer.socket(), POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}}};
    if (::poll(files.data(), files.size(), flooding ? 0 : -1) < 0) Fail("poll");
    if (files[1].revents != 0) return;
    // All that has come: what floods this end out must not hide what is said meanwhile.
    while (const auto received = peer.Take()) {
      switch (received->message.operation) {
        case kEcho:
          peer.Echo(*received);
          break;
        case kFlood:
          peer.BeginFlood(*received);
          flooding = true;
          break;
        case kStop:
          flooding = false;
          break;
        default:
          break;
      }
    }
    if (flooding) peer.Flood();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || (std::string(argv[1]) != "packet" && std::string(argv[1]) != "udp")) {
    std::fputs("usage: net-peer packet INTERFACE | udp PORT\n", stderr);
    return 2;
  }
  if (std::string(argv[1]) == "packet") {
    PacketPeer peer(argv[2]);
    Serve(peer);
  } else {
    UdpPeer peer(argv[2]);
    Serve(peer);
  }
}
