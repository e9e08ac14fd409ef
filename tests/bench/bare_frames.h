// SPDX-License-Identifier: Apache-2.0
// The least that frames on a tap can cost: one system call each and, where none has come, a sleep; one thread, no
// rings. Used by net_device.cc and bare_tap.cc. The tap does not block.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/bench/net_message.h"

namespace bulkhead::bench {

inline constexpr uint8_t kGuest = 7, kHost = 1;  // ends of MAC addresses

// A frame behind its header: one that is too large for a wire is a TCP segment that nobody has cut yet.
inline std::vector<std::byte> Packet(size_t header_bytes, uint32_t bytes, uint8_t to, uint8_t from) {
  std::vector<std::byte> packet(header_bytes + bytes);
  auto* const frame = reinterpret_cast<uint8_t*>(packet.data() + header_bytes);
  const uint8_t to_mac[] = {2, 0, 0, 0, 0, to}, from_mac[] = {2, 0, 0, 0, 0, from};
  if (bytes > kWholeFrame) {
    std::memcpy(packet.data(), &kSegmentHeader, sizeof kSegmentHeader);
    PutSegment(frame, to_mac, from_mac, bytes);
  } else {
    PutEthernet(frame, to_mac, from_mac, kEtherTypeTest);
  }
  return packet;
}

class BareTap {
 public:
  explicit BareTap(int tap) : tap_(tap), room_(kLargestFrame + 64) {}

  bool Send(const std::vector<std::byte>& packet, uint64_t count = 1) {
    for (uint64_t i = 0; i < count; ++i) {
      if (::write(tap_, packet.data(), packet.size()) < 0) return false;
    }
    return true;
  }
  // So many packets of that size; others are counted out.
  bool Receive(size_t packet_bytes, uint64_t count = 1) {
    for (uint64_t received = 0; received < count;) {
      const ssize_t bytes = ::read(tap_, room_.data(), room_.size());
      if (bytes == static_cast<ssize_t>(packet_bytes)) ++received;
      if (bytes < 0 && (errno != EAGAIN || !Await(-1))) return false;
    }
    return true;
  }
  // One at a time.
  bool ThereAndBack(const std::vector<std::byte>& packet, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (!Send(packet) || !Receive(packet.size())) return false;
    }
    return true;
  }
  // Drops what comes until nothing does for so long.
  void Drain(int quiet_ms) {
    while (Await(quiet_ms) && ::read(tap_, room_.data(), room_.size()) >= 0) continue;
  }

 private:
  bool Await(int timeout_ms) {
    pollfd wait{tap_, POLLIN, 0};
    return ::poll(&wait, 1, timeout_ms) > 0;
  }

  const int tap_;
  std::vector<std::byte> room_;
};

}  // namespace bulkhead::bench
