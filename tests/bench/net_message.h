// SPDX-License-Identifier: Apache-2.0
// What the guest of the network benchmark says to the peer at the other end, and how frames of either look.
// Freestanding: the guest's side has no library.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bulkhead::bench {

enum Operation : uint32_t {
  kSink,   // not answered
  kEcho,   // sent back
  kFlood,  // frames of `flood_bytes` are sent, without end
  kStop,   // until then
};

// Behind the Ethernet header, or the datagram's; little-endian.
struct Message {
  Operation operation;
  uint32_t flood_bytes;
};

inline constexpr uint16_t kEtherTypeTest = 0x88B5;  // IEEE 802: for local experiments
inline constexpr uint16_t kEtherTypeIp4 = 0x0800;
inline constexpr uint16_t kEtherTypeArp = 0x0806;
inline constexpr uint8_t kTcp = 6;
inline constexpr uint8_t kUdp = 17;
inline constexpr uint32_t kEthernetBytes = 14;
inline constexpr uint32_t kIp4Bytes = 20;
inline constexpr uint32_t kTcpBytes = 20;
inline constexpr uint32_t kUdpBytes = 8;
inline constexpr uint32_t kSegmentHeaderBytes = kEthernetBytes + kIp4Bytes + kTcpBytes;
inline constexpr uint32_t kSmallestFrame = 60;  // of 64 bytes on a wire, with its checksum
inline constexpr uint32_t kWholeFrame = 1514;
// Linux cuts what has 64 KiB (gso_max_size) with its Ethernet header, whoever takes segments whole.
inline constexpr uint32_t kLargestFrame = 65535;
inline constexpr uint16_t kSegmentBytes = kWholeFrame - kSegmentHeaderBytes;

inline void PutBig16(uint8_t* at, uint32_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}
inline uint16_t TakeBig16(const uint8_t* at) { return static_cast<uint16_t>(at[0] << 8 | at[1]); }

inline void PutEthernet(uint8_t* frame, const uint8_t* to, const uint8_t* from, uint16_t type) {
  for (unsigned i = 0; i < 6; ++i) {
    frame[i] = to[i];
    frame[6 + i] = from[i];
  }
  PutBig16(frame + 12, type);
}

// An IPv4 header for so many bytes with it (RFC 791 §3.1).
inline void PutIp4(uint8_t* at, uint32_t total_bytes, uint8_t protocol, const uint8_t* from, const uint8_t* to) {
  for (unsigned i = 0; i < kIp4Bytes; ++i) at[i] = 0;
  at[0] = 0x45;
  PutBig16(at + 2, total_bytes);
  at[8] = 64;
  at[9] = protocol;
  for (unsigned i = 0; i < 4; ++i) {
    at[12 + i] = from[i];
    at[16 + i] = to[i];
  }
  uint32_t sum = 0;
  for (unsigned i = 0; i < kIp4Bytes; i += 2) sum += TakeBig16(at + i);
  sum = (sum & 0xFFFF) + (sum >> 16);
  PutBig16(at + 10, ~(sum + (sum >> 16)));
}

// The header virtio puts before a TCP segment that the other end is to cut (virtio 1.2 §5.1.6); the first 10 bytes are
// Linux's virtio_net_hdr, too.
struct [[gnu::packed]] PacketHeader {
  uint8_t flags;
  uint8_t gso_type;
  uint16_t header_bytes;
  uint16_t gso_bytes;
  uint16_t checksum_start;
  uint16_t checksum_offset;
};
inline constexpr PacketHeader kSegmentHeader{1, 1, kSegmentHeaderBytes, kSegmentBytes, kEthernetBytes + kIp4Bytes, 16};

// A TCP segment of nobody's connection, which the stack that gets it drops.
inline void PutSegment(uint8_t* frame, const uint8_t* to, const uint8_t* from, uint32_t bytes) {
  constexpr uint8_t kFrom[] = {192, 0, 2, 1}, kTo[] = {192, 0, 2, 2};  // RFC 5737
  PutEthernet(frame, to, from, kEtherTypeIp4);
  PutIp4(frame + kEthernetBytes, bytes - kEthernetBytes, kTcp, kFrom, kTo);
  uint8_t* const tcp = frame + kEthernetBytes + kIp4Bytes;
  for (unsigned i = 0; i < kTcpBytes; ++i) tcp[i] = 0;
  PutBig16(tcp, 9);
  PutBig16(tcp + 2, 9);
  tcp[12] = kTcpBytes / 4 << 4;
  tcp[13] = 0x10;  // ACK
}

}  // namespace bulkhead::bench
