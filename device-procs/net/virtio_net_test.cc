// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/virtio_net.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include "device-procs/common/virtio_state.capnp.h"
#include "device-procs/net/net_driver.h"
#include "device-procs/net/net_state.capnp.h"

namespace bulkhead::device {
namespace {

using namespace net_feature;
using control::LinkState;
using test::Buffer;
using test::kTestMac;
using test::NetDriver;
using test::Packet;
using test::TestFrame;
using test::Used;

constexpr uint16_t kReceive = 0, kTransmit = 1;
constexpr uint32_t kHeader = sizeof(PacketHeader);
constexpr uint64_t kOffloads = net_feature::kChecksum | kGuestChecksum | kGuestTso4 | kHostTso4;
constexpr uint64_t kControl = kControlQueue | kControlReceive | kControlVlan | kControlMac | kAnnounce;
constexpr PacketHeader kTso{
    .flags = 1, .gso_type = 1, .header_bytes = 54, .gso_bytes = 1448, .checksum_start = 34, .checksum_offset = 16};

std::string Command(int command_class, int command, const std::string& arguments) {
  return std::string{static_cast<char>(command_class), static_cast<char>(command)} + arguments;
}
template <typename T>
std::string Bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string Text(const MacAddress& mac) { return {mac.begin(), mac.end()}; }

class VirtioNetTest : public testing::Test {
 protected:
  // Receive buffers side by side; their heads.
  std::vector<uint16_t> Post(std::initializer_list<uint32_t> sizes, uint16_t queue = kReceive) {
    std::vector<uint16_t> heads;
    for (const uint32_t size : sizes) {
      heads.push_back(net_.ring(queue).Add({{next_, size, true}}));
      next_ = next_ + size;
    }
    net_.Kick(queue);
    return heads;
  }
  std::string Received(size_t bytes, uint64_t offset = 0) {
    return net_.ring(kReceive).GetText(NetDriver::kData + offset, bytes);
  }
  // What arrives is given to the guest in the order it comes; one that is known to be taken tells that the others were
  // not.
  void ExpectOnly(const std::string& frame, uint64_t offset = 0) {
    EXPECT_EQ(net_.Wait(kReceive).length, kHeader + frame.size());
    EXPECT_EQ(Received(frame.size(), offset + kHeader), frame);
    EXPECT_EQ(net_.ring(kReceive).TakeUsed(), std::nullopt);
  }
  std::string OnlySent() {
    const auto sent = net_.port().TakeSent();
    EXPECT_EQ(sent.size(), 1u);
    return sent.empty() ? "" : sent[0];
  }
  LinkState SetLink(bool up) { return net_.function().function().SetLink(up); }
  bool NeedsReset() { return (net_.function().Status() & test::kNeedsReset) != 0; }

  GuestMemory memory_ = test::MakeGuestMemory(NetDriver::kMemoryBytes);
  NetDriver net_{memory_, 2};
  Gpa next_ = NetDriver::kData;
};

TEST_F(VirtioNetTest, ConfigurationHasAddressLinkPairsAndMtu) {
  for (size_t i = 0; i < kTestMac.size(); ++i) EXPECT_EQ(net_.Config<uint8_t>(i), kTestMac[i]);
  EXPECT_EQ(net_.Config<uint16_t>(6), 1);
  EXPECT_EQ(net_.Config<uint16_t>(8), 2);
  EXPECT_EQ(net_.Config<uint16_t>(10), 1500);
}

TEST_F(VirtioNetTest, ManyPairsAreOfferedWhereThereAre) {
  EXPECT_NE(net_.function().DeviceFeatures() & kMultiQueue, 0u);
  NetDriver one(memory_, 1);
  EXPECT_EQ(one.function().DeviceFeatures() & kMultiQueue, 0u);
}

TEST_F(VirtioNetTest, SendsAPacketThatLiesInPieces) {
  net_.SetUp(0);
  const std::string packet = Packet({}, TestFrame(600));
  net_.ring(kTransmit).PutText(NetDriver::kData, packet);
  net_.ring(kTransmit).Add({{NetDriver::kData, 5}, {NetDriver::kData + 5, 10}, {NetDriver::kData + 15, 597}});
  net_.Kick(kTransmit);
  net_.Wait(kTransmit);
  EXPECT_EQ(OnlySent(), packet);
  EXPECT_EQ(net_.function().Interrupts(2), 1u);
}

TEST_F(VirtioNetTest, LeavesSegmentsAndChecksumsToTheBackEnd) {
  net_.SetUp(kOffloads);
  EXPECT_TRUE(net_.backend().offloads().tso4);
  EXPECT_FALSE(net_.backend().offloads().tso6);
  net_.Send(Packet(kTso, TestFrame(60000)));
  EXPECT_EQ(OnlySent(), Packet(kTso, TestFrame(60000)));
  net_.SetUp(0);
  EXPECT_FALSE(net_.backend().offloads().checksum);
  net_.Send(Packet(kTso, TestFrame(60000)));
  EXPECT_TRUE(net_.port().TakeSent().empty()) << "not negotiated";
}

TEST_F(VirtioNetTest, AMalformedPacketCostsThatPacketOnly) {
  net_.SetUp(kOffloads);
  auto& ring = net_.ring(kTransmit);
  ring.PutText(NetDriver::kData, Packet({}, TestFrame(100)));
  ring.Add({{NetDriver::kData, 5}});                                   // no whole header
  ring.Add({{NetDriver::kData, kHeader + 13}});                        // no whole frame
  ring.Add({{NetDriver::kData, 0x10'0000}});                           // larger than any
  ring.Add({{NetDriver::kData, 100}, {Gpa{uint64_t{1} << 40}, 100}});  // not in memory
  ring.Add({{NetDriver::kData, 0, true}});                             // nothing to send
  net_.Kick(kTransmit);
  for (int i = 0; i < 5; ++i) net_.Wait(kTransmit);
  net_.Send(Packet({.flags = 1, .checksum_start = 90, .checksum_offset = 90}, TestFrame(100)));
  EXPECT_TRUE(net_.port().TakeSent().empty());
  net_.Send(Packet({}, TestFrame(100)));
  EXPECT_EQ(OnlySent(), Packet({}, TestFrame(100)));
  EXPECT_FALSE(NeedsReset());
}

TEST_F(VirtioNetTest, ABrokenQueueNeedsReset) {
  net_.SetUp(0);
  net_.ring(kTransmit).SetAvailableIndex(NetDriver::kQueueSize + 1);
  net_.Kick(kTransmit);
  net_.WaitUntil([&] { return NeedsReset(); });
  net_.SetUp(0);
  net_.Send(Packet({}, TestFrame(100)));
  EXPECT_EQ(OnlySent(), Packet({}, TestFrame(100)));
}

TEST_F(VirtioNetTest, DropsAnotherOnesAddressAndTellsOfItOnce) {
  net_.SetUp(0);
  for (int i = 0; i < 3; ++i) net_.Send(Packet({}, TestFrame(100, {2, 0, 0, 0, 0, 9})));
  EXPECT_TRUE(net_.port().TakeSent().empty());
  EXPECT_EQ(net_.log().size(), 1u);
}

TEST_F(VirtioNetTest, APauseTellsWhatWasCarried) {
  net_.SetUp(0);
  Post({2000});
  net_.port().Arrive(Packet({}, TestFrame(700)));
  net_.Wait(kReceive);
  for (int i = 0; i < 2; ++i) net_.Send(Packet({}, TestFrame(100)));
  for (int i = 0; i < 2; ++i) {
    net_.function().function().Pause();
    net_.function().function().Resume();
  }
  EXPECT_EQ(net_.log(), std::vector<std::string>{
                            "received 1 packets (700 bytes, 0 dropped), sent 2 packets (200 bytes, 0 dropped)"});
}

TEST_F(VirtioNetTest, ReportsWhatItCarried) {
  net_.SetUp(kControl | kMultiQueue);
  EXPECT_EQ(net_.Control(Command(4, 0, Bytes(uint16_t{2}))), 0);
  Post({2000});
  net_.port().Arrive(Packet({}, TestFrame(700)));
  net_.Wait(kReceive);
  for (uint16_t pair : {0, 1}) net_.Send(Packet({}, TestFrame(100)), pair);
  net_.Send(Packet({}, TestFrame(100, {2, 0, 0, 0, 0, 9})));
  net_.Send("");
  capnp::MallocMessageBuilder message;
  auto report = message.initRoot<control::NetReport>();
  net_.function().function().ReportNet(report);
  EXPECT_EQ(report.getLink(), control::LinkState::UP);
  EXPECT_EQ(report.getReceived().getPackets(), 1u);
  EXPECT_EQ(report.getReceived().getBytes(), 700u);
  EXPECT_EQ(report.getSent().getPackets(), 2u);
  EXPECT_EQ(report.getSent().getBytes(), 200u);
  EXPECT_EQ(report.getSent().getDropped(), 2u);
  EXPECT_EQ(report.getSent().getRefused(), 1u);
}

TEST_F(VirtioNetTest, ReceivesIntoOneBuffer) {
  net_.SetUp(0);
  const auto heads = Post({2000});
  net_.port().Arrive(Packet({}, TestFrame(700)));
  EXPECT_EQ(net_.Wait(kReceive), (Used{heads[0], kHeader + 700}));
  EXPECT_EQ(Received(kHeader + 700), Packet({.buffers = 1}, TestFrame(700)));
  EXPECT_EQ(net_.function().Interrupts(1), 1u);
}

TEST_F(VirtioNetTest, APacketWaitsAtItsPortForTheFirstBuffer) {
  net_.SetUp(kMergeBuffers);
  net_.port().Arrive(Packet({}, TestFrame(700)));
  net_.port().Arrive(Packet({}, TestFrame(60)));
  Post({2000, 2000});
  EXPECT_EQ(net_.Wait(kReceive).length, kHeader + 700);
  EXPECT_EQ(net_.Wait(kReceive).length, kHeader + 60);
}

TEST_F(VirtioNetTest, ALargePacketTakesAsManyBuffersAsItNeeds) {
  net_.SetUp(kOffloads | kMergeBuffers);
  const auto heads = Post({1000, 1000, 1000, 1000});
  net_.port().Arrive(Packet(kTso, TestFrame(2500)));
  EXPECT_EQ(net_.Wait(kReceive), (Used{heads[0], 1000}));
  EXPECT_EQ(net_.Wait(kReceive), (Used{heads[1], 1000}));
  EXPECT_EQ(net_.Wait(kReceive), (Used{heads[2], kHeader + 500}));
  PacketHeader header = kTso;
  header.buffers = 3;
  EXPECT_EQ(Received(kHeader + 2500), Packet(header, TestFrame(2500)));
  net_.port().Arrive(Packet({}, TestFrame(900)));
  EXPECT_EQ(net_.Wait(kReceive), (Used{heads[3], kHeader + 900}));
}

TEST_F(VirtioNetTest, TheEndOfAPacketWaitsForMoreBuffers) {
  net_.SetUp(kOffloads | kMergeBuffers);
  Post({1000, 500});
  net_.port().Arrive(Packet(kTso, TestFrame(60000)));
  net_.port().Arrive(Packet({}, TestFrame(80)));
  net_.WaitUntil([&] { return net_.port().waiting() == 1; });
  EXPECT_EQ(net_.ring(kReceive).UsedIndex(), 0) << "all of it or nothing";
  Post({30000});
  Post({30000});
  uint32_t total = 0;
  for (int i = 0; i < 4; ++i) total += net_.Wait(kReceive).length;
  EXPECT_EQ(total, kHeader + 60000);
  PacketHeader header = kTso;
  header.buffers = 4;
  EXPECT_EQ(Received(kHeader + 60000), Packet(header, TestFrame(60000)));
  Post({1000});
  EXPECT_EQ(net_.Wait(kReceive).length, kHeader + 80);
}

TEST_F(VirtioNetTest, ThePacketIsWholeWhereBuffersAreAFewBytes) {
  net_.SetUp(kMergeBuffers);
  for (int i = 0; i < 16; ++i) Post({1, 7, 30});
  net_.port().Arrive(Packet({}, TestFrame(500)));
  net_.WaitUntil([&] { return net_.ring(kReceive).UsedIndex() != 0; });
  const uint16_t buffers = net_.ring(kReceive).UsedIndex();
  EXPECT_EQ(Received(kHeader + 500), Packet({.buffers = buffers}, TestFrame(500)));
}

TEST_F(VirtioNetTest, WhatCannotBeAPacketIsNotReceived) {
  net_.SetUp(0);
  Post({2000, 2000});
  net_.port().Arrive("short");
  net_.port().Arrive(Packet({}, TestFrame(13)));
  net_.port().Arrive(Packet({}, TestFrame(1989)));  // than the buffer
  net_.port().Arrive(Packet({}, std::string(100'000, 'x')));
  net_.port().Arrive(Packet(kTso, TestFrame(1000)));  // not negotiated
  net_.port().Arrive(Packet({}, TestFrame(99)));
  ExpectOnly(TestFrame(99));
}

TEST_F(VirtioNetTest, APacketThatIsLargerThanAnyIsNotReceived) {
  net_.SetUp(kMergeBuffers | kOffloads);
  for (int i = 0; i < 60; ++i) Post({4000});
  net_.port().Arrive(Packet({}, std::string(kMaxFrameBytes + 1, 'x')));
  net_.port().Arrive(Packet({}, std::string(200'000, 'x')));
  net_.port().Arrive(Packet({}, TestFrame(99)));
  ExpectOnly(TestFrame(99));
}

TEST_F(VirtioNetTest, AReceiveBufferThatIsNoneNeedsReset) {
  net_.SetUp(kMergeBuffers);
  net_.ring(kReceive).Add({{Gpa{uint64_t{1} << 40}, 2000, true}});
  net_.Kick(kReceive);
  net_.port().Arrive(Packet({}, TestFrame(99)));
  net_.WaitUntil([&] { return NeedsReset(); });
}

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

TEST_F(VirtioNetTest, PairsAreServedOnceTheyAreAskedFor) {
  net_.SetUp(kControl | kMultiQueue);
  EXPECT_EQ(net_.backend().active_pairs(), 1);
  EXPECT_EQ(net_.Control(Command(4, 0, Bytes(uint16_t{2}))), 0);
  EXPECT_EQ(net_.backend().active_pairs(), 2);
  net_.Send(Packet({}, TestFrame(100)), 1);
  EXPECT_EQ(net_.port(1).TakeSent().size(), 1u);
  Post({2000}, 2);
  net_.port(1).Arrive(Packet({}, TestFrame(60)));
  EXPECT_EQ(net_.Wait(2).length, kHeader + 60);
  EXPECT_EQ(net_.Control(Command(4, 0, Bytes(uint16_t{1}))), 0);
  EXPECT_EQ(net_.backend().active_pairs(), 1);
}

TEST_F(VirtioNetTest, AnOutsideThatIsGoneIsALinkThatIsDown) {
  net_.SetUp(kStatus);
  Post({2000});
  net_.port().Disappear();
  net_.WaitUntil([&] {
    net_.RunPending();
    return net_.Config<uint16_t>(6) == 0;
  });
  EXPECT_EQ(net_.function().Interrupts(0), 1u);
}

TEST_F(VirtioNetTest, ALinkThatIsOffCarriesNothingAndOneThatIsOnAgainOnlyWhatIsNew) {
  net_.SetUp(kStatus);
  EXPECT_EQ(SetLink(false), LinkState::DOWN);
  EXPECT_EQ(net_.Config<uint16_t>(6), 0);
  EXPECT_EQ(net_.function().Interrupts(0), 1u);
  net_.Send(Packet({}, TestFrame(100)));
  EXPECT_TRUE(net_.port().TakeSent().empty());
  // With and without room for them.
  net_.port().Arrive(Packet({}, TestFrame(60)));
  net_.WaitUntil([&] { return net_.port().waiting() == 0; });
  Post({2000});
  net_.port().Arrive(Packet({}, TestFrame(61)));
  net_.WaitUntil([&] { return net_.port().waiting() == 0; });
  EXPECT_EQ(SetLink(true), LinkState::UP);
  EXPECT_EQ(net_.Config<uint16_t>(6), 1);
  EXPECT_EQ(net_.function().Interrupts(0), 1u);
  net_.port().Arrive(Packet({}, TestFrame(62)));
  ExpectOnly(TestFrame(62));
  net_.Send(Packet({}, TestFrame(101)));
  EXPECT_EQ(OnlySent(), Packet({}, TestFrame(101)));
  capnp::MallocMessageBuilder message;
  auto report = message.initRoot<control::NetReport>();
  net_.function().function().ReportNet(report);
  EXPECT_EQ(report.getReceived().getDropped(), 2u);
  EXPECT_EQ(report.getSent().getDropped(), 1u);
  EXPECT_EQ(report.getSent().getBytes(), 101u);
}

TEST_F(VirtioNetTest, APacketThatWaitsForBuffersIsLostWithItsLink) {
  net_.SetUp(kMergeBuffers);
  Post({1000});
  net_.port().Arrive(Packet({}, TestFrame(1400)));
  net_.WaitUntil([&] { return net_.port().waiting() == 0; });
  SetLink(false);
  SetLink(true);
  Post({1000});
  net_.port().Arrive(Packet({}, TestFrame(62)));
  ExpectOnly(TestFrame(62));
}

TEST_F(VirtioNetTest, AResetDoesNotTurnALinkOn) {
  net_.SetUp(kStatus);
  SetLink(false);
  net_.SetUp(kStatus);
  EXPECT_EQ(net_.Config<uint16_t>(6), 0);
  net_.Send(Packet({}, TestFrame(100)));
  EXPECT_TRUE(net_.port().TakeSent().empty());
}

TEST_F(VirtioNetTest, ALinkCanBeOffFromTheStart) {
  NetDriver off(memory_, 1, {.mac = kTestMac}, false);
  EXPECT_EQ(off.Config<uint16_t>(6), 0);
  off.SetUp(kStatus);
  off.Send(Packet({}, TestFrame(100)));
  EXPECT_TRUE(off.port().TakeSent().empty());
  EXPECT_EQ(off.function().function().SetLink(true), LinkState::UP);
  off.Send(Packet({}, TestFrame(100)));
  EXPECT_EQ(off.port().TakeSent().size(), 1u);
}

TEST_F(VirtioNetTest, ALinkWhoseOutsideIsGoneCannotBeTurnedOn) {
  net_.SetUp(kStatus);
  Post({2000});
  net_.port().Disappear();
  net_.WaitUntil([&] {
    net_.RunPending();
    return net_.Config<uint16_t>(6) == 0;
  });
  EXPECT_EQ(SetLink(true), LinkState::GONE);
  EXPECT_EQ(SetLink(false), LinkState::GONE);
  EXPECT_EQ(net_.Config<uint16_t>(6), 0);
  EXPECT_EQ(net_.function().Interrupts(0), 1u) << "of its outside's end";
}

TEST_F(VirtioNetTest, AGuestThatIsPausedHearsOfItsLinkLater) {
  net_.SetUp(kStatus);
  net_.function().function().Pause();
  SetLink(false);
  EXPECT_EQ(net_.function().Interrupts(0), 0u);
  net_.function().function().Resume();
  EXPECT_EQ(net_.function().Interrupts(0), 1u);
}

TEST_F(VirtioNetTest, ALinkThatIsOffIsSavedAsSuch) {
  net_.SetUp(kStatus);
  SetLink(false);
  net_.function().function().Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  net_.function().function().Save(state);
  NetDriver other(memory_, 2);
  other.function().function().Pause();
  const auto restored = other.function().function().Restore(state.asReader());
  ASSERT_TRUE(restored.ok()) << restored.error().message;
  other.TakeOverRings(net_);
  EXPECT_EQ(other.Config<uint16_t>(6), 0);
  other.function().function().Resume();
  EXPECT_EQ(other.function().Interrupts(0), 1u) << "whatever its driver knows";
  other.Send(Packet({}, TestFrame(100)));
  EXPECT_TRUE(other.port().TakeSent().empty());
}

TEST_F(VirtioNetTest, LimitsHoldPacketsBackAndCanBeLifted) {
  net_.SetUp(0);
  capnp::MallocMessageBuilder message;
  auto limits = message.initRoot<control::DiskThrottle>();
  limits.setOperationsPerSecond(1);
  limits.setOperationsBurst(2);
  net_.function().function().SetThrottle(limits.asReader());
  auto& ring = net_.ring(kTransmit);
  ring.PutText(NetDriver::kData, Packet({}, TestFrame(100)));
  for (int i = 0; i < 60; ++i) ring.Add({{NetDriver::kData, kHeader + 100}});
  net_.Kick(kTransmit);
  net_.Wait(kTransmit);
  EXPECT_LT(ring.UsedIndex(), 60);
  limits.setOperationsPerSecond(0);
  net_.function().function().SetThrottle(limits.asReader());
  net_.WaitUntil([&] { return ring.UsedIndex() == 60; });
}

// Buffers that were taken and hold nothing are there again in the other device, and its filter and pairs are the same.
TEST_F(VirtioNetTest, StateSurvivesARoundTrip) {
  constexpr uint64_t kAll = kControl | kMultiQueue | kMergeBuffers | kStatus;
  net_.SetUp(kAll);
  EXPECT_EQ(net_.Control(Command(4, 0, Bytes(uint16_t{2}))), 0);
  EXPECT_EQ(net_.Control(Command(0, 0, std::string(1, '\0'))), 0);
  EXPECT_EQ(net_.Control(Command(2, 0, Bytes(uint16_t{7}))), 0);
  Post({2000, 2000, 2000});
  net_.port().Arrive(Packet({}, TestFrame(60, {}, kTestMac)));
  net_.Wait(kReceive);
  net_.function().function().Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  net_.function().function().Save(state);

  NetDriver other(memory_, 2);
  other.function().function().Pause();
  const auto restored = other.function().function().Restore(state.asReader());
  ASSERT_TRUE(restored.ok()) << restored.error().message;
  other.TakeOverRings(net_);
  EXPECT_EQ(other.backend().active_pairs(), 2);
  other.function().function().Resume();
  EXPECT_EQ(other.Config<uint16_t>(6), 3) << "has to announce itself";
  EXPECT_EQ(other.function().Interrupts(0), 1u);
  other.port().Arrive(Packet({}, TestFrame(60)));
  other.port().Arrive(Packet({}, TestFrame(61, {}, kTestMac)));
  EXPECT_EQ(other.Wait(kReceive).length, kHeader + 61);
  EXPECT_EQ(other.ring(kReceive).GetText(NetDriver::kData + 2000 + kHeader, 61), TestFrame(61, {}, kTestMac));
  EXPECT_EQ(other.Control(Command(3, 0, "")), 0);
  EXPECT_EQ(other.Config<uint16_t>(6), 1);
}

TEST_F(VirtioNetTest, AStateThatIsNoneIsRefused) {
  net_.SetUp(kControl | kMultiQueue);
  net_.function().function().Pause();
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  net_.function().function().Save(state);
  NetDriver another(memory_, 2, {.mac = {2, 0, 0, 0, 0, 9}});
  another.function().function().Pause();
  EXPECT_FALSE(another.function().function().Restore(state.asReader()).ok()) << "of another address";
  NetDriver fewer(memory_, 1);
  fewer.function().function().Pause();
  EXPECT_FALSE(fewer.function().function().Restore(state.asReader()).ok());
}

}  // namespace
}  // namespace bulkhead::device
