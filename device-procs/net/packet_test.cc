// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/packet.h"

#include <gtest/gtest.h>

#include "device-procs/net/features.h"

namespace bulkhead::device {
namespace {

constexpr size_t kFrame = 1000;
constexpr Offloads kAll{.checksum = true, .tso4 = true, .tso6 = true, .ecn = true};
constexpr PacketHeader kChecksum{.flags = 1, .checksum_start = 34, .checksum_offset = 16};
constexpr PacketHeader kTso{
    .flags = 1, .gso_type = 1, .header_bytes = 54, .gso_bytes = 500, .checksum_start = 34, .checksum_offset = 16};

template <typename Change>
bool Passes(PacketHeader header, const Offloads& offloads, Change change) {
  change(header);
  return CheckHeader(header, kFrame, offloads);
}
bool Passes(const PacketHeader& header, const Offloads& offloads) {
  return Passes(header, offloads, [](PacketHeader&) {});
}

TEST(PacketHeader, MayAskForWhatWasNegotiatedOnly) {
  EXPECT_TRUE(Passes({}, {}));
  EXPECT_TRUE(Passes(kChecksum, kAll));
  EXPECT_FALSE(Passes(kChecksum, {}));
  EXPECT_TRUE(Passes(kTso, kAll));
  EXPECT_FALSE(Passes(kTso, {.checksum = true}));
  EXPECT_FALSE(Passes(kTso, {.checksum = true, .tso6 = true}));
  EXPECT_TRUE(Passes(kTso, kAll, [](PacketHeader& header) { header.gso_type = 4; }));
  EXPECT_TRUE(Passes(kTso, kAll, [](PacketHeader& header) { header.gso_type = 0x84; }));
  EXPECT_FALSE(Passes(kTso, {.checksum = true, .tso4 = true}, [](PacketHeader& header) { header.gso_type = 0x81; }));
}

TEST(PacketHeader, OffsetsLieInsideOfTheFrame) {
  EXPECT_TRUE(Passes(kChecksum, kAll, [](PacketHeader& header) { header.checksum_start = kFrame - 18; }));
  EXPECT_FALSE(Passes(kChecksum, kAll, [](PacketHeader& header) { header.checksum_start = kFrame - 17; }));
  EXPECT_FALSE(Passes(kChecksum, kAll, [](PacketHeader& header) { header.checksum_start = 0xFFFF; }));
  EXPECT_FALSE(Passes(kChecksum, kAll, [](PacketHeader& header) { header.checksum_offset = 0xFFFF; }));
  EXPECT_FALSE(Passes(kTso, kAll, [](PacketHeader& header) { header.header_bytes = kFrame + 1; }));
}

TEST(PacketHeader, SegmentsNeedASizeAChecksumAndAKnownKind) {
  EXPECT_FALSE(Passes(kTso, kAll, [](PacketHeader& header) { header.gso_bytes = 0; }));
  EXPECT_FALSE(Passes(kTso, kAll, [](PacketHeader& header) { header.flags = 0; }));
  for (const uint8_t kind : {2, 3, 5, 0x80, 0xFF}) {
    EXPECT_FALSE(Passes(kTso, kAll, [&](PacketHeader& header) { header.gso_type = kind; })) << int{kind};
  }
}

TEST(PacketHeader, WhatIsNotAskedForIsZeroAfterwards) {
  PacketHeader header{.flags = 0xFE, .header_bytes = 9, .gso_bytes = 9, .checksum_start = 9, .buffers = 9};
  ASSERT_TRUE(CheckHeader(header, kFrame, kAll));
  EXPECT_EQ(header.flags, 0);
  EXPECT_EQ(header.header_bytes + header.gso_bytes + header.checksum_start + header.buffers, 0);
}

TEST(PacketHeader, AGoodChecksumIsVouchedForToWhoNegotiatedIt) {
  PacketHeader header{.flags = 2};
  ASSERT_TRUE(CheckReceivedHeader(header, kFrame, kAll));
  EXPECT_EQ(header.flags, 2);
  ASSERT_TRUE(CheckReceivedHeader(header, kFrame, {}));
  EXPECT_EQ(header.flags, 0);
}

TEST(PacketHeader, OffloadsWithoutWhatTheyRequireAreNone) {
  using namespace net_feature;
  EXPECT_FALSE(TransmitOffloads(kHostTso4 | kHostTso6 | kHostEcn).tso4);
  EXPECT_FALSE(TransmitOffloads(net_feature::kChecksum | kHostEcn).ecn);
  const Offloads transmit = TransmitOffloads(net_feature::kChecksum | kHostTso6 | kHostEcn);
  EXPECT_TRUE(transmit.checksum && !transmit.tso4 && transmit.tso6 && transmit.ecn);
  const Offloads receive = ReceiveOffloads(kGuestChecksum | kGuestTso4 | net_feature::kChecksum | kHostTso6);
  EXPECT_TRUE(receive.checksum && receive.tso4 && !receive.tso6 && !receive.ecn);
}

}  // namespace
}  // namespace bulkhead::device
