// SPDX-License-Identifier: Apache-2.0
// What the driver asks for by the control queue: filters, VLANs, offloads, coalescing.
#include "device-procs/net/virtio_net.h"

#include <capnp/message.h>

#include "device-procs/common/virtio_state.capnp.h"
#include "device-procs/net/net_state.capnp.h"
#include "device-procs/net/virtio_net_fixture.h"

namespace bulkhead::device {
namespace {

using namespace net_feature;
using namespace test;

TEST_F(VirtioNetTest, TheFilterIsTheDrivers) {
  net_.SetUp(kControl);
  Post({2000, 2000, 2000});
  const MacAddress listed{2, 0, 0, 0, 0, 3}, group{3, 0, 0, 0, 0, 4}, other{2, 0, 0, 0, 0, 5};
  const auto arrive = [&](const MacAddress& to) { net_.port().Arrive(Packet({}, TestFrame(60, {}, to))); };
  EXPECT_EQ(net_.Control(Command(0, 0, std::string(1, '\0'))), 0);
  arrive(other);
  arrive(kTestMac);
  ExpectOnly(TestFrame(60, {}, kTestMac));
  EXPECT_EQ(net_.Control(Command(1, 0, Bytes(1u) + Text(listed) + Bytes(0u))), 0);
  arrive(group);
  arrive(listed);
  ExpectOnly(TestFrame(60, {}, listed), 2000);
  EXPECT_EQ(net_.Control(Command(0, 1, "\x01")), 0);
  arrive(other);
  arrive(group);
  ExpectOnly(TestFrame(60, {}, group), 4000);
}

TEST_F(VirtioNetTest, VlansAreTheDrivers) {
  net_.SetUp(kControl);
  Post({2000, 2000});
  std::string tagged = TestFrame(60);
  tagged.replace(12, 4, std::string("\x81\x00\x00\x07", 4));
  net_.port().Arrive(Packet({}, tagged));
  net_.port().Arrive(Packet({}, TestFrame(61)));
  ExpectOnly(TestFrame(61));
  EXPECT_EQ(net_.Control(Command(2, 0, Bytes(uint16_t{7}))), 0);
  net_.port().Arrive(Packet({}, tagged));
  ExpectOnly(tagged, 2000);
  EXPECT_EQ(net_.Control(Command(2, 1, Bytes(uint16_t{7}))), 0);
  EXPECT_EQ(net_.Control(Command(2, 0, Bytes(uint16_t{4096}))), 1);
}

TEST_F(VirtioNetTest, TheAddressMayNotBecomeAnotherOnes) {
  net_.SetUp(kControl);
  EXPECT_EQ(net_.Control(Command(1, 1, Text(kTestMac))), 0);
  EXPECT_EQ(net_.Control(Command(1, 1, Text({2, 0, 0, 0, 0, 9}))), 1);
  NetDriver free(memory_, 1, {.mac = kTestMac, .any_mac = true});
  free.SetUp(kControl);
  EXPECT_EQ(free.Control(Command(1, 1, Text({2, 0, 0, 0, 0, 9}))), 0);
  EXPECT_EQ(free.Config<uint8_t>(5), 9);
  EXPECT_EQ(free.Control(Command(1, 1, Text({3, 0, 0, 0, 0, 9}))), 1) << "a group's";
}

TEST_F(VirtioNetTest, MalformedCommandsAreRefused) {
  net_.SetUp(kControl | kMultiQueue);
  for (const std::string& command :
       {Command(9, 0, "x"), Command(0, 9, "\x01"), Command(0, 0, ""), Command(0, 0, "\x02"), Command(0, 0, "\x01x"),
        Command(1, 0, Bytes(1u)), Command(1, 0, Bytes(~0u) + Bytes(0u)), Command(1, 0, Bytes(0u)),
        Command(1, 1, "12345"), Command(2, 0, "x"), Command(3, 1, ""), Command(4, 0, Bytes(uint16_t{0})),
        Command(4, 0, Bytes(uint16_t{3}))}) {
    EXPECT_EQ(net_.Control(command), 1) << testing::PrintToString(command);
  }
  EXPECT_EQ(net_.Control(Command(0, 0, "\x01")), 0);
  EXPECT_FALSE(NeedsReset());
}

TEST_F(VirtioNetTest, CommandsThatWereNotNegotiatedAreRefused) {
  net_.SetUp(kControlQueue);
  EXPECT_EQ(net_.Control(Command(0, 0, "\x01")), 1);
  EXPECT_EQ(net_.Control(Command(1, 1, Text(kTestMac))), 1);
  EXPECT_EQ(net_.Control(Command(2, 0, Bytes(uint16_t{7}))), 1);
  EXPECT_EQ(net_.Control(Command(3, 0, "")), 1);
  EXPECT_EQ(net_.Control(Command(4, 0, Bytes(uint16_t{1}))), 1);
}

TEST_F(VirtioNetTest, MoreAddressesThanCanBeToldApartAreAllTakenIn) {
  net_.SetUp(kControl);
  Post({2000});
  EXPECT_EQ(net_.Control(Command(0, 0, std::string(1, '\0'))), 0);
  EXPECT_EQ(net_.Control(Command(1, 0, Bytes(100u) + std::string(600, '\2') + Bytes(0u))), 0);
  net_.port().Arrive(Packet({}, TestFrame(60)));
  ExpectOnly(TestFrame(60));
}

TEST_F(VirtioNetTest, TheDriverCanDoWithoutOffloadsThatItNegotiated) {
  net_.SetUp(kControl | kControlGuestOffloads | kOffloads | kMergeBuffers);
  Post({2000, 2000, 2000});
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum))), 0);
  EXPECT_TRUE(net_.backend().offloads().checksum);
  EXPECT_FALSE(net_.backend().offloads().tso4);
  net_.port().Arrive(Packet(kTso, TestFrame(1500)));
  net_.port().Arrive(Packet({}, TestFrame(99)));
  ExpectOnly(TestFrame(99));
  net_.Send(Packet(kTso, TestFrame(60000)));
  EXPECT_EQ(OnlySent(), Packet(kTso, TestFrame(60000))) << "what it sends is another matter";
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum | kGuestTso4))), 0);
  EXPECT_TRUE(net_.backend().offloads().tso4);
  net_.port().Arrive(Packet(kTso, TestFrame(1500)));
  ExpectOnly(TestFrame(1500), 2000);
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(uint64_t{0}))), 0);
  EXPECT_FALSE(net_.backend().offloads().checksum);
  net_.SetUp(kControl | kControlGuestOffloads | kOffloads);
  EXPECT_TRUE(net_.backend().offloads().tso4) << "a reset asks for all again";
}

TEST_F(VirtioNetTest, APacketInHandIsLostWithTheOffloadThatItNeeds) {
  net_.SetUp(kControl | kControlGuestOffloads | kOffloads | kMergeBuffers);
  Post({1000});
  net_.port().Arrive(Packet(kTso, TestFrame(1500)));
  net_.WaitUntil([&] { return net_.port().waiting() == 0; });
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(uint64_t{0}))), 0);
  Post({1000});
  net_.port().Arrive(Packet({}, TestFrame(99)));
  ExpectOnly(TestFrame(99));
}

TEST_F(VirtioNetTest, OffloadsThatWereNotNegotiatedAreRefused) {
  net_.SetUp(kControl | kControlGuestOffloads | kOffloads);
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum | kGuestTso6))), 1);
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum | net_feature::kChecksum))), 1) << "not one of the guest's";
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(uint32_t{2}))), 1);
  EXPECT_EQ(net_.Control(Command(5, 1, Bytes(kGuestChecksum))), 1);
  EXPECT_TRUE(net_.backend().offloads().tso4);
  net_.SetUp(kControl | kOffloads);
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum))), 1);
}

TEST_F(VirtioNetTest, OffloadsThatTheDriverDoesWithoutAreSaved) {
  net_.SetUp(kControl | kControlGuestOffloads | kOffloads);
  EXPECT_EQ(net_.Control(Command(5, 0, Bytes(kGuestChecksum))), 0);
  net_.function().function().Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  net_.function().function().Save(state);
  NetDriver other(memory_, 2);
  other.function().function().Pause();
  const auto restored = other.function().function().Restore(state.asReader());
  ASSERT_TRUE(restored.ok()) << restored.error().message;
  EXPECT_TRUE(other.backend().offloads().checksum);
  EXPECT_FALSE(other.backend().offloads().tso4);
  state.getAs<state::VirtioState>().getDevice().getAs<state::NetState>().setOffloadsOff(net_feature::kChecksum);
  EXPECT_FALSE(other.function().function().Restore(state.asReader()).ok()) << "none that can be done without";
}

TEST_F(VirtioNetTest, InterruptsAreHeldBackAsTheDriverAsksFor) {
  net_.SetUp(kControl | kCoalescing);
  EXPECT_EQ(net_.Control(Command(6, 0, Bytes(100u) + Bytes(kMaxCoalesceUsecs))), 0);
  (void)net_.function().Interrupts(2);
  for (int i = 0; i < 100; ++i) net_.Send(Packet({}, TestFrame(100)));
  uint64_t interrupts = 0;
  net_.WaitUntil([&] { return (interrupts += net_.function().Interrupts(2)) != 0; });
  // As many as seconds that this took.
  EXPECT_LT(interrupts, 50u);
}

TEST_F(VirtioNetTest, AnInterruptThatIsHeldBackComesInTheEnd) {
  net_.SetUp(kControl | kCoalescing);
  for (int command : {0, 1}) EXPECT_EQ(net_.Control(Command(6, command, Bytes(100u) + Bytes(500u))), 0);
  for (int i = 0; i < 3; ++i) {
    net_.Send(Packet({}, TestFrame(100)));
    net_.WaitUntil([&] { return net_.function().Interrupts(2) != 0; });
    Post({2000});
    net_.port().Arrive(Packet({}, TestFrame(60)));
    net_.WaitUntil([&] { return net_.function().Interrupts(1) != 0; });
  }
}

TEST_F(VirtioNetTest, APauseAndOtherLimitsHoldNothingBack) {
  net_.SetUp(kControl | kCoalescing);
  const std::string late = Bytes(100u) + Bytes(kMaxCoalesceUsecs);
  EXPECT_EQ(net_.Control(Command(6, 0, late)), 0);
  net_.Send(Packet({}, TestFrame(100)));
  EXPECT_EQ(net_.Control(Command(6, 0, Bytes(0u) + Bytes(0u))), 0);
  EXPECT_EQ(net_.function().Interrupts(2), 1u);
  for (int command : {0, 1}) EXPECT_EQ(net_.Control(Command(6, command, late)), 0);
  Post({2000});
  net_.port().Arrive(Packet({}, TestFrame(60)));
  net_.Wait(kReceive);
  net_.Send(Packet({}, TestFrame(100)));
  net_.function().function().Pause();
  EXPECT_EQ(net_.function().Interrupts(1), 1u);
  EXPECT_EQ(net_.function().Interrupts(2), 1u);
}

TEST_F(VirtioNetTest, CoalescingThatCannotBeIsRefused) {
  net_.SetUp(kControl | kCoalescing);
  for (const std::string& command :
       {Command(6, 2, Bytes(1u) + Bytes(1u)), Command(6, 0, Bytes(1u)), Command(6, 0, Bytes(1u) + Bytes(1u) + "x"),
        Command(6, 1, Bytes(1u) + Bytes(kMaxCoalesceUsecs + 1))}) {
    EXPECT_EQ(net_.Control(command), 1) << testing::PrintToString(command);
  }
  net_.SetUp(kControl);
  EXPECT_EQ(net_.Control(Command(6, 0, Bytes(1u) + Bytes(1u))), 1) << "not negotiated";
}

TEST_F(VirtioNetTest, CoalescingIsSaved) {
  net_.SetUp(kControl | kCoalescing);
  EXPECT_EQ(net_.Control(Command(6, 0, Bytes(3u) + Bytes(4u))), 0);
  EXPECT_EQ(net_.Control(Command(6, 1, Bytes(5u) + Bytes(6u))), 0);
  net_.function().function().Pause();
  NetDriver other(memory_, 2);
  other.function().function().Pause();
  // And again by whoever has restored it.
  capnp::MallocMessageBuilder first, second;
  auto state = first.getRoot<capnp::AnyPointer>(), again = second.getRoot<capnp::AnyPointer>();
  net_.function().function().Save(state);
  const auto restored = other.function().function().Restore(state.asReader());
  ASSERT_TRUE(restored.ok()) << restored.error().message;
  other.function().function().Save(again);
  auto saved = again.getAs<state::VirtioState>().getDevice().getAs<state::NetState>();
  EXPECT_EQ(saved.getTransmitCoalescing().getMaxPackets(), 3u);
  EXPECT_EQ(saved.getTransmitCoalescing().getMaxMicroseconds(), 4u);
  EXPECT_EQ(saved.getReceiveCoalescing().getMaxPackets(), 5u);
  EXPECT_EQ(saved.getReceiveCoalescing().getMaxMicroseconds(), 6u);
  saved.getReceiveCoalescing().setMaxMicroseconds(kMaxCoalesceUsecs + 1);
  EXPECT_FALSE(other.function().function().Restore(again.asReader()).ok());
}

}  // namespace
}  // namespace bulkhead::device
