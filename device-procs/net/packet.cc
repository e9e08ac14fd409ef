// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/packet.h"

#include "device-procs/net/features.h"

namespace bulkhead::device {
namespace {

// Flags and kinds of segmentation (§5.1.6).
constexpr uint8_t kNeedsChecksum = 1;
constexpr uint8_t kDataValid = 2;
constexpr uint8_t kGsoNone = 0;
constexpr uint8_t kGsoTcp4 = 1;
constexpr uint8_t kGsoTcp6 = 4;
constexpr uint8_t kGsoEcn = 0x80;

bool GsoAllowed(uint8_t type, const Offloads& offloads) {
  if ((type & kGsoEcn) != 0 && !offloads.ecn) return false;
  switch (type & ~kGsoEcn) {
    case kGsoTcp4:
      return offloads.tso4;
    case kGsoTcp6:
      return offloads.tso6;
    default:
      return false;
  }
}

bool ChecksumFits(const PacketHeader& header, size_t frame_bytes) {
  return size_t{header.checksum_start} + header.checksum_offset + sizeof(uint16_t) <= frame_bytes;
}

Offloads Depending(bool checksum, bool tso4, bool tso6, bool ecn) {
  const Offloads offloads{.checksum = checksum, .tso4 = checksum && tso4, .tso6 = checksum && tso6};
  return {.checksum = checksum,
          .tso4 = offloads.tso4,
          .tso6 = offloads.tso6,
          .ecn = ecn && (offloads.tso4 || offloads.tso6)};
}

}  // namespace

Offloads TransmitOffloads(uint64_t features) {
  using namespace net_feature;
  const auto has = [&](uint64_t bit) { return (features & bit) != 0; };
  return Depending(has(kChecksum), has(kHostTso4), has(kHostTso6), has(kHostEcn));
}

Offloads ReceiveOffloads(uint64_t features) {
  using namespace net_feature;
  const auto has = [&](uint64_t bit) { return (features & bit) != 0; };
  return Depending(has(kGuestChecksum), has(kGuestTso4), has(kGuestTso6), has(kGuestEcn));
}

bool CheckHeader(PacketHeader& header, size_t frame_bytes, const Offloads& offloads) {
  PacketHeader checked;
  if ((header.flags & kNeedsChecksum) != 0) {
    if (!offloads.checksum || !ChecksumFits(header, frame_bytes)) return false;
    checked.flags = kNeedsChecksum;
    checked.checksum_start = header.checksum_start;
    checked.checksum_offset = header.checksum_offset;
  }
  if (header.gso_type != kGsoNone) {
    // Segments are never without checksums of their own.
    if (checked.flags == 0 || !GsoAllowed(header.gso_type, offloads)) return false;
    if (header.gso_bytes == 0 || header.header_bytes > frame_bytes) return false;
    checked.gso_type = header.gso_type;
    checked.gso_bytes = header.gso_bytes;
    checked.header_bytes = header.header_bytes;
  }
  header = checked;
  return true;
}

bool CheckReceivedHeader(PacketHeader& header, size_t frame_bytes, const Offloads& offloads) {
  const bool valid = (header.flags & kDataValid) != 0 && offloads.checksum;
  if (!CheckHeader(header, frame_bytes, offloads)) return false;
  if (valid) header.flags |= kDataValid;
  return true;
}

}  // namespace bulkhead::device
