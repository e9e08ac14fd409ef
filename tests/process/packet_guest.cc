// SPDX-License-Identifier: Apache-2.0
#include "tests/process/packet_guest.h"

#include <netinet/in.h>
#include <poll.h>

#include "ipc/ring.h"

namespace bulkhead::test {
namespace {

constexpr int kHangMs = 60'000;
constexpr uint8_t kFin = 1, kSyn = 2, kReset = 4, kAck = 16;
const std::string kMac("\x52\x54\x00\x12\x34\x56", 6);

std::string Be16(uint16_t value) { return {static_cast<char>(value >> 8), static_cast<char>(value)}; }
std::string Be32(uint32_t value) {
  return Be16(static_cast<uint16_t>(value >> 16)) + Be16(static_cast<uint16_t>(value));
}
uint16_t At16(const std::string& bytes, size_t at) {
  return static_cast<uint16_t>(static_cast<uint8_t>(bytes.at(at)) << 8 | static_cast<uint8_t>(bytes.at(at + 1)));
}
uint32_t At32(const std::string& bytes, size_t at) { return uint32_t{At16(bytes, at)} << 16 | At16(bytes, at + 2); }

// RFC 1071
uint16_t Sum(std::string bytes) {
  uint32_t sum = 0;
  if (bytes.size() % 2 != 0) bytes.push_back(0);
  for (size_t at = 0; at < bytes.size(); at += 2) sum += At16(bytes, at);
  while (sum >> 16 != 0) sum = (sum & 0xFFFF) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

std::string Udp(const std::string& pseudo_header, uint16_t from, uint16_t to, const std::string& payload) {
  const std::string length = Be16(static_cast<uint16_t>(8 + payload.size()));
  const std::string ports = Be16(from) + Be16(to) + length;
  return ports + Be16(Sum(pseudo_header + ports + std::string(2, 0) + payload)) + payload;
}

std::string TcpBytes(const std::string& pseudo_header, uint16_t from, uint16_t to, uint32_t sequence, uint32_t ack,
                     uint8_t flags, const std::string& payload) {
  const std::string head =
      Be16(from) + Be16(to) + Be32(sequence) + Be32(ack) + '\x50' + static_cast<char>(flags) + Be16(0xFFFF);
  return head + Be16(Sum(pseudo_header + head + std::string(4, 0) + payload)) + std::string(2, 0) + payload;
}

std::string Pseudo4(uint8_t protocol, uint32_t from, uint32_t to, size_t bytes) {
  return Be32(from) + Be32(to) + std::string{0, static_cast<char>(protocol)} + Be16(static_cast<uint16_t>(bytes));
}

std::string Ethernet(uint16_t type) { return std::string("\x52\x55\x0A\x00\x02\x02", 6) + kMac + Be16(type); }

std::string Address6(uint8_t last) { return std::string("\xFE\xC0", 2) + std::string(13, 0) + static_cast<char>(last); }
std::string Pseudo6(uint8_t protocol, size_t bytes) {
  return Address6(0x15) + Address6(2) + Be32(static_cast<uint32_t>(bytes)) + Be32(protocol);
}
std::string Ip6Frame(uint8_t protocol, const std::string& payload) {
  return Ethernet(0x86DD) + '\x60' + std::string(3, 0) + Be16(static_cast<uint16_t>(payload.size())) +
         static_cast<char>(protocol) + '\x40' + Address6(0x15) + Address6(2) + payload;
}

}  // namespace

PacketGuest::PacketGuest(const broker::PlannedPackets& theirs)
    : doorbell_(OrThrow(DuplicateFd(theirs.peer.get()))),
      peer_(OrThrow(DuplicateFd(theirs.doorbell.get()))),
      memory_(OrThrow(MapPacketLink(theirs.memory.get()))),
      sending_(&memory_->to_outside),
      receiving_(&memory_->to_net) {}

void PacketGuest::Send(const std::string& frame) {
  const iovec piece{const_cast<char*>(frame.data()), frame.size()};
  if (!OrThrow(sending_.Push(std::span(&piece, 1)))) throw FatalError("the packet ring is full");
  if (sending_.TakeWakeRequest()) SignalEventFd(peer_.get());
}

std::string PacketGuest::Receive(int timeout_ms) {
  std::string frame(kMaxRingFrameBytes, '\0');
  const iovec piece{frame.data(), frame.size()};
  const Deadline deadline = Deadline::After(int64_t{timeout_ms} * 1'000'000);
  for (;;) {
    const size_t bytes = OrThrow(receiving_.Pop(std::span(&piece, 1)));
    if (receiving_.TakeRoomRequest()) SignalEventFd(peer_.get());
    if (bytes != 0) return frame.substr(0, bytes);
    if (deadline.Passed()) return "";
    if (!receiving_.PrepareToSleep()) continue;
    pollfd wait{doorbell_.get(), POLLIN, 0};
    ::poll(&wait, 1, static_cast<int>((deadline.at_ns - MonotonicNow()) / 1'000'000 + 1));
    DrainEventFd(doorbell_.get());
  }
}

void PacketGuest::SendIp(uint8_t protocol, uint32_t to, const std::string& payload) {
  const uint32_t from = to == UINT32_MAX ? 0 : kAddress;
  const std::string head = std::string{'\x45', 0} + Be16(static_cast<uint16_t>(20 + payload.size())) + Be32(0) +
                           '\x40' + static_cast<char>(protocol);
  const std::string addresses = Be32(from) + Be32(to);
  Send(Ethernet(0x0800) + head + Be16(Sum(head + std::string(2, 0) + addresses)) + addresses + payload);
}

std::optional<std::string> PacketGuest::ReceiveIp(uint8_t protocol, int timeout_ms) {
  for (std::string frame; !(frame = Receive(timeout_ms)).empty();) {
    if (At16(frame, 12) == 0x0806 && At16(frame, 20) == 1 && At32(frame, 38) == kAddress) {
      Send(Ethernet(0x0806) + frame.substr(14, 6) + Be16(2) + kMac + Be32(kAddress) + frame.substr(22, 10));
    }
    if (At16(frame, 12) == 0x0800 && static_cast<uint8_t>(frame[23]) == protocol) {
      return frame.substr(34, At16(frame, 16) - 20u);
    }
  }
  return std::nullopt;
}

std::optional<Lease> PacketGuest::AskForLease() {
  std::string request =
      std::string{1, 1, 6, 0} + Be32(0x12345678) + std::string(20, 0) + kMac + std::string(10 + 192, 0);
  // Magic, and the option that says DISCOVER (RFC 2131).
  request += std::string("\x63\x82\x53\x63\x35\x01\x01\xFF", 8) + std::string(60, 0);
  SendIp(IPPROTO_UDP, UINT32_MAX, Udp(Pseudo4(IPPROTO_UDP, 0, UINT32_MAX, 8 + request.size()), 68, 67, request));
  const auto reply = ReceiveIp(IPPROTO_UDP, kHangMs);
  if (!reply || At16(*reply, 2) != 68) return std::nullopt;
  Lease lease{.address = At32(*reply, 8 + 16), .hostname = {}};
  for (size_t at = 8 + 240; at + 2 < reply->size() && (*reply)[at] != '\xFF';
       at += 2u + static_cast<uint8_t>((*reply)[at + 1])) {
    const uint8_t option = static_cast<uint8_t>((*reply)[at]), length = static_cast<uint8_t>((*reply)[at + 1]);
    if (option == 3) lease.router = At32(*reply, at + 2);
    if (option == 6) lease.resolver = At32(*reply, at + 2);
    if (option == 12) lease.hostname = reply->substr(at + 2, length);
  }
  return lease;
}

void PacketGuest::SendDatagram(uint32_t address, uint16_t port, uint16_t from_port, const std::string& payload) {
  const std::string pseudo = Pseudo4(IPPROTO_UDP, kAddress, address, 8 + payload.size());
  SendIp(IPPROTO_UDP, address, Udp(pseudo, from_port, port, payload));
}

std::optional<std::pair<std::string, uint16_t>> PacketGuest::ReceiveDatagram(uint16_t to_port, int timeout_ms) {
  while (const auto packet = ReceiveIp(IPPROTO_UDP, timeout_ms)) {
    if (At16(*packet, 2) == to_port) return std::pair(packet->substr(8), At16(*packet, 0));
  }
  return std::nullopt;
}

std::optional<std::string> PacketGuest::Ask(uint32_t address, uint16_t port, const std::string& question,
                                            int timeout_ms) {
  const uint16_t from = next_port_++;
  SendDatagram(address, port, from, question);
  const auto answer = ReceiveDatagram(from, timeout_ms);
  return answer ? std::optional(answer->first) : std::nullopt;
}

void PacketGuest::SendTcp(uint32_t to, const Tcp& segment) {
  SendIp(IPPROTO_TCP, to,
         TcpBytes(Pseudo4(IPPROTO_TCP, kAddress, to, 20 + segment.payload.size()), segment.from_port, segment.to_port,
                  segment.sequence, segment.acknowledged, segment.flags, segment.payload));
}

std::optional<PacketGuest::Tcp> PacketGuest::ReceiveTcp(uint16_t to_port, int timeout_ms) {
  while (const auto packet = ReceiveIp(IPPROTO_TCP, timeout_ms)) {
    if (At16(*packet, 2) != to_port) continue;
    const size_t head = 4u * (static_cast<uint8_t>(packet->at(12)) >> 4);
    return Tcp{.from_port = At16(*packet, 0),
               .to_port = to_port,
               .sequence = At32(*packet, 4),
               .acknowledged = At32(*packet, 8),
               .flags = static_cast<uint8_t>(packet->at(13)),
               .payload = packet->substr(head)};
  }
  return std::nullopt;
}

std::optional<std::string> PacketGuest::Fetch(uint32_t address, uint16_t port) {
  const uint16_t own = next_port_++;
  SendTcp(address, {own, port, 100, 0, kSyn, ""});
  const auto answer = ReceiveTcp(own, kHangMs);
  if (!answer || (answer->flags & kReset) != 0 || (answer->flags & kSyn) == 0) return std::nullopt;
  uint32_t next = answer->sequence + 1;
  SendTcp(address, {own, port, 101, next, kAck, ""});
  std::string text;
  while (const auto segment = ReceiveTcp(own, kHangMs)) {
    if (segment->sequence != next) continue;
    text += segment->payload;
    next += static_cast<uint32_t>(segment->payload.size());
    const bool end = (segment->flags & kFin) != 0;
    SendTcp(address, {own, port, 101, next + (end ? 1 : 0), static_cast<uint8_t>(end ? kAck | kFin : kAck), ""});
    if (end) return text;
  }
  return std::nullopt;
}

bool PacketGuest::Serve(uint16_t port, const std::string& text) {
  const auto asked = ReceiveTcp(port, kHangMs);
  if (!asked || (asked->flags & kSyn) == 0) return false;
  SendTcp(kHost, {port, asked->from_port, 500, asked->sequence + 1, kSyn | kAck, ""});
  const auto opened = ReceiveTcp(port, kHangMs);
  if (!opened || (opened->flags & kAck) == 0) return false;
  SendTcp(kHost, {port, asked->from_port, 501, asked->sequence + 1, kAck | kFin, text});
  return true;
}

void PacketGuest::SolicitNeighbour6() {
  const std::string to = std::string("\xFF\x02", 2) + std::string(9, 0) + std::string("\x01\xFF\x00\x00\x02", 5);
  const std::string rest = Be32(0) + Address6(2) + std::string("\x01\x01", 2) + kMac;
  const std::string type("\x87\x00", 2);
  const auto bytes = static_cast<uint16_t>(rest.size() + 4);
  const uint16_t sum = Sum(Address6(0x15) + to + Be32(bytes) + Be32(IPPROTO_ICMPV6) + type + Be16(0) + rest);
  Send(std::string("\x33\x33\xFF\x00\x00\x02", 6) + kMac + Be16(0x86DD) + '\x60' + std::string(3, 0) + Be16(bytes) +
       static_cast<char>(IPPROTO_ICMPV6) + '\xFF' + Address6(0x15) + to + type + Be16(sum) + rest);
}

void PacketGuest::SendDatagram6(uint16_t port, const std::string& payload) {
  Send(Ip6Frame(IPPROTO_UDP, Udp(Pseudo6(IPPROTO_UDP, 8 + payload.size()), next_port_++, port, payload)));
}

void PacketGuest::SendSyn6(uint16_t port) {
  Send(Ip6Frame(IPPROTO_TCP, TcpBytes(Pseudo6(IPPROTO_TCP, 20), next_port_++, port, 100, 0, kSyn, "")));
}

bool PacketGuest::Ping(uint32_t address, int timeout_ms) {
  const std::string rest = Be16(1) + Be16(1) + "payload!";
  const std::string type{8, 0};
  SendIp(IPPROTO_ICMP, address, type + Be16(Sum(type + std::string(2, 0) + rest)) + rest);
  const auto reply = ReceiveIp(IPPROTO_ICMP, timeout_ms);
  return reply && reply->at(0) == 0;
}

}  // namespace bulkhead::test
