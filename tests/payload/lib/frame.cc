// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/frame.h"

namespace payload {
namespace {

constexpr uint8_t kNobody[] = {2, 0, 0, 0, 0, 2};
constexpr uint8_t kGuest[] = {10, 0, 2, 15}, kHost[] = {10, 0, 2, 2};  // of user-mode networking
constexpr uint32_t kDatagramHeaderBytes = kEthernetBytes + kIp4Bytes + kUdpBytes;
constexpr uint16_t kOwnPort = 4000;

bool TakeMessage(const uint8_t* at, Operation operation) {
  Message message;
  __builtin_memcpy(&message, at, sizeof message);
  return message.operation == operation;
}

}  // namespace

uint32_t Framing::Build(uint8_t* at, const Message& message, uint32_t bytes) const {
  __builtin_memset(at, 0, kHeaderBytes + bytes);
  uint8_t* const frame = at + kHeaderBytes;
  if (udp()) {
    PutEthernet(frame, kNobody, mac_, kEtherTypeIp4);
    PutIp4(frame + kEthernetBytes, bytes - kEthernetBytes, kUdp, kGuest, kHost);
    uint8_t* const datagram = frame + kEthernetBytes + kIp4Bytes;
    PutBig16(datagram, kOwnPort);
    PutBig16(datagram + 2, udp_port_);
    PutBig16(datagram + 4, bytes - kEthernetBytes - kIp4Bytes);  // no checksum (RFC 768)
    __builtin_memcpy(frame + kDatagramHeaderBytes, &message, sizeof message);
  } else if (bytes > kWholeFrame) {
    __builtin_memcpy(at, &kSegmentHeader, sizeof kSegmentHeader);
    PutSegment(frame, kNobody, mac_, bytes);
  } else {
    PutEthernet(frame, kNobody, mac_, kEtherTypeTest);
    __builtin_memcpy(frame + kEthernetBytes, &message, sizeof message);
  }
  return kHeaderBytes + bytes;
}

uint32_t Framing::BuildArp(uint8_t* at) const {
  constexpr uint8_t kAll[] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
  constexpr uint8_t kRequest[] = {0, 1, 8, 0, 6, 4, 0, 1};  // RFC 826
  __builtin_memset(at, 0, kHeaderBytes + kSmallestFrame);
  uint8_t* const frame = at + kHeaderBytes;
  PutEthernet(frame, kAll, mac_, kEtherTypeArp);
  uint8_t* const arp = frame + kEthernetBytes;
  __builtin_memcpy(arp, kRequest, sizeof kRequest);
  __builtin_memcpy(arp + 8, mac_, sizeof mac_);
  __builtin_memcpy(arp + 14, kGuest, sizeof kGuest);
  __builtin_memcpy(arp + 24, kGuest, sizeof kGuest);
  return kHeaderBytes + kSmallestFrame;
}

bool Framing::Is(const uint8_t* at, Operation operation, uint32_t bytes) const {
  const uint8_t* const frame = at + kHeaderBytes;
  const uint16_t type = TakeBig16(frame + 12);
  const uint8_t protocol = frame[kEthernetBytes + 9];
  if (udp()) {
    return type == kEtherTypeIp4 && protocol == kUdp && TakeBig16(frame + kEthernetBytes + kIp4Bytes) == udp_port_ &&
           TakeMessage(frame + kDatagramHeaderBytes, operation);
  }
  // One that was cut on its way is not the frame that was asked for.
  if (bytes > kWholeFrame) {
    return type == kEtherTypeIp4 && protocol == kTcp && kEthernetBytes + TakeBig16(frame + kEthernetBytes + 2) == bytes;
  }
  return type == kEtherTypeTest && TakeMessage(frame + kEthernetBytes, operation);
}

}  // namespace payload
