// SPDX-License-Identifier: Apache-2.0
// The header that stands before each packet (virtio 1.2 §5.1.6), and what is allowed in it. Queue thread. A header that
// came from a guest is hostile, and checked in a private copy; one from the back end is the host's, but says things
// about a packet that anyone may have sent.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace bulkhead::device {

// As it lies in guest memory and as the tap has it, little-endian.
struct PacketHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t header_bytes = 0;
  uint16_t gso_bytes = 0;
  uint16_t checksum_start = 0;
  uint16_t checksum_offset = 0;
  uint16_t buffers = 0;
};
static_assert(sizeof(PacketHeader) == 12);

using MacAddress = std::array<uint8_t, 6>;

inline constexpr size_t kEthernetBytes = 14;
// The largest packet: one that is to be cut into segments, by its IP header at most 64 KiB, with an 802.1Q tag.
inline constexpr size_t kMaxFrameBytes = 65535 + kEthernetBytes + 4;
inline constexpr size_t kMaxPacketBytes = sizeof(PacketHeader) + kMaxFrameBytes;
// As many vectors as one system call takes (IOV_MAX).
inline constexpr size_t kMaxVectors = 1024;

// What one direction may leave to its other side.
struct Offloads {
  bool checksum = false;
  bool tso4 = false;
  bool tso6 = false;
  bool ecn = false;
};

// Of the features that were negotiated (§5.1.3), without those whose requirements were not (§5.1.3.1).
Offloads TransmitOffloads(uint64_t features);
Offloads ReceiveOffloads(uint64_t features);

// Whether a header may stand before a frame of this size (§5.1.6.2): offsets inside of the frame, nothing asked for
// that was not negotiated. What it does not ask for is zero afterwards.
bool CheckHeader(PacketHeader& header, size_t frame_bytes, const Offloads& offloads);
// The same for a frame on its way to the guest (§5.1.6.4.1), where a good checksum may be vouched for.
bool CheckReceivedHeader(PacketHeader& header, size_t frame_bytes, const Offloads& offloads);

}  // namespace bulkhead::device
