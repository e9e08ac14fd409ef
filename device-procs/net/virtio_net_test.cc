// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/virtio_net.h"

#include <capnp/message.h>

#include "device-procs/common/virtio_state.capnp.h"
#include "device-procs/net/net_state.capnp.h"
#include "device-procs/net/virtio_net_fixture.h"

namespace bulkhead::device {
namespace {

using namespace net_feature;
using namespace test;
using control::LinkState;

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

TEST_F(VirtioNetTest, WhatThePortHasNoRoomForStaysTheGuests) {
  net_.SetUp(0);
  net_.port().SetRoom(2);
  auto& ring = net_.ring(kTransmit);
  for (uint64_t i = 0; i < 4; ++i) {
    const std::string packet = Packet({}, TestFrame(100 + i));
    ring.PutText(NetDriver::kData + i * 256, packet);
    ring.Add({{NetDriver::kData + i * 256, static_cast<uint32_t>(packet.size())}});
  }
  net_.Kick(kTransmit);
  for (int i = 0; i < 2; ++i) net_.Wait(kTransmit);
  // Stopped meanwhile, as for a pause, it leaves the rest in the queue.
  net_.function().function().Pause();
  EXPECT_EQ(ring.TakeUsed(), std::nullopt);
  net_.function().function().Resume();
  net_.port().SetRoom(2);
  for (int i = 0; i < 2; ++i) net_.Wait(kTransmit);
  const auto sent = net_.port().TakeSent();
  ASSERT_EQ(sent.size(), 4u);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(sent[i], Packet({}, TestFrame(100 + i)));
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
