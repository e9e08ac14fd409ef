// SPDX-License-Identifier: Apache-2.0
// The net process at a tap and on a packet link. NetFunction is the driver.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "ipc/packet_ring.h"
#include "tests/process/harness.h"
#include "tests/process/net_function.h"

namespace bulkhead::test {
namespace {

using device::FeatureBit;
using device::test::QueueDriver;
using device::test::Used;

TEST_F(NetProcessTest, CarriesPacketsBothWays) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network));
  NetFunction function(process);
  function.Start(kFeatures & ~FeatureBit(22), 3);
  const std::string out = TestFrame(1514, kHost, kGuest), in = TestFrame(1400, kGuest, kHost);
  function.Send(out);
  EXPECT_EQ(network.Receive(), out);
  function.Post(0, kData, 1000);
  function.Post(0, kData + 1000, 1000);
  network.Send(in);
  EXPECT_EQ(function.Wait(0).length, 1000u);
  EXPECT_EQ(function.queue(0).TakeUsed().value_or(Used{}).length, kHeader + 400);
  EXPECT_EQ(function.queue(0).GetText(kData + kHeader, 1400), in);
}

TEST_F(NetProcessTest, NobodySpeaksAsAnotherMachine) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network));
  NetFunction function(process);
  function.Start(0, 2);
  function.Send(TestFrame(60, kHost, kGuest + 1));
  EXPECT_FALSE(network.HasFrame());
  function.Send(TestFrame(61, kHost, kGuest));
  EXPECT_EQ(network.Receive(), TestFrame(61, kHost, kGuest));
}

TEST_F(NetProcessTest, UsesAsManyQueuesOfTheTapAsTheDriverAsksFor) {
  TapNetwork network(2);
  DeviceProcess process(*io_, Net(network));
  NetFunction function(process);
  function.Start(kFeatures, 5);
  const std::string in = TestFrame(60, kGuest, kHost);
  // With one pair all arrives there, whatever queue the kernel would choose of both.
  for (unsigned i = 0; i < 8; ++i) {
    function.Post(0, kData + 0x1000, 2000);
    network.Send(in);
    EXPECT_EQ(function.Wait(0).length, kHeader + 60);
  }
  EXPECT_EQ(function.SetPairs(4, 2), 0);
  function.Send(TestFrame(60, kHost, kGuest), 1);
  EXPECT_EQ(network.Receive(), TestFrame(60, kHost, kGuest));
  EXPECT_EQ(function.SetPairs(4, 1), 0);
  EXPECT_EQ(function.SetPairs(4, 3), 1);
  function.Post(0, kData + 0x1000, 2000);
  network.Send(in);
  EXPECT_EQ(function.Wait(0).length, kHeader + 60);
}

TEST_F(NetProcessTest, WhatTheDriverDoesWithoutTheHostDoesBeforeTheTap) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network));
  NetFunction function(process);
  function.Start((kFeatures & ~FeatureBit(22)) | FeatureBit(2), 3);
  EXPECT_TRUE(network.TakesLargePackets());
  const auto offloads = [&](uint8_t bits) {
    return function.Control(2, {5, 0, static_cast<char>(bits), 0, 0, 0, 0, 0, 0, 0});
  };
  EXPECT_EQ(offloads(1 << 1), 0);
  EXPECT_FALSE(network.TakesLargePackets());
  EXPECT_EQ(offloads(1 << 1 | 1 << 7), 0);
  EXPECT_TRUE(network.TakesLargePackets());
  EXPECT_EQ(offloads(1 << 0), 1);
}

// Small packets with sequence numbers, in batches both ways: of a batch, none can be lost for want of room.
class PacketStorm {
 public:
  static constexpr unsigned kBatch = 100;
  static constexpr uint16_t kQueueSize = 256;

  PacketStorm(DeviceProcess& process, NetFunction& function, TapNetwork& network)
      : process_(process), function_(function), network_(network) {}

  // Whether all of one batch each way arrived, in order and as they were.
  bool Batch() {
    std::string expected = TestFrame(kFrameBytes, kHost, kGuest);
    for (unsigned i = 0; i < kBatch; ++i) {
      const Gpa at = kData + kSpace * i;
      function_.queue(1).PutText(at, std::string(kHeader, '\0') + Number(expected, sequence_ + i));
      function_.queue(1).Add({{at, kHeader + kFrameBytes}});
    }
    process_.Kick(1);
    if (!function_.WaitFor(1, kBatch)) return false;
    for (unsigned i = 0; i < kBatch; ++i) {
      if (network_.Receive() != Number(expected, sequence_ + i)) return false;
    }

    for (unsigned i = 0; i < kBatch; ++i) function_.queue(0).Add({{kData + kSpace * i, kSpace, true}});
    process_.Kick(0);
    expected = TestFrame(kFrameBytes, kGuest, kHost);
    for (unsigned i = 0; i < kBatch; ++i) network_.Send(Number(expected, sequence_ + i));
    if (!function_.WaitFor(0, kBatch)) return false;
    for (unsigned i = 0; i < kBatch; ++i) {
      if (function_.queue(0).GetText(kData + kSpace * i + kHeader, kFrameBytes) != Number(expected, sequence_ + i)) {
        return false;
      }
    }
    sequence_ += kBatch;
    return true;
  }
  uint32_t sequence() const { return sequence_; }

 private:
  static constexpr uint32_t kFrameBytes = 60;
  static constexpr uint32_t kSpace = 256;
  static const std::string& Number(std::string& frame, uint32_t sequence) {
    std::memcpy(&frame[14], &sequence, sizeof sequence);
    return frame;
  }

  DeviceProcess& process_;
  NetFunction& function_;
  TapNetwork& network_;
  uint32_t sequence_ = 0;
};

// What a process has: KiB of memory of its own, and descriptors.
struct Belongings {
  uint64_t kib = 0;
  size_t descriptors = 0;
};

Belongings BelongingsOf(pid_t pid) {
  const std::filesystem::path proc = "/proc/" + std::to_string(pid);
  Belongings out;
  std::ifstream rollup(proc / "smaps_rollup");
  for (std::string word; rollup >> word;) {
    if (word == "Anonymous:") rollup >> out.kib;
  }
  const std::filesystem::directory_iterator descriptors(proc / "fd");
  out.descriptors = static_cast<size_t>(std::distance(begin(descriptors), end(descriptors)));
  return out;
}

// Each way; as many as the environment says, for who wants it for longer than a second.
uint32_t StormPackets() {
  const char* const text = ::getenv("BULKHEAD_STORM_PACKETS");
  return text != nullptr ? static_cast<uint32_t>(std::strtoul(text, nullptr, 10)) : 100'000;
}

// Paced, not timed: where a machine is slower, it takes longer.
TEST_F(NetProcessTest, AHundredThousandSmallPacketsASecondLeaveNothingBehind) {
  const uint32_t packets = StormPackets();
  constexpr auto kInterval = std::chrono::milliseconds(2);
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network));
  NetFunction function(process);
  function.Start(kFeatures & ~FeatureBit(22), 3, PacketStorm::kQueueSize);
  PacketStorm storm(process, function, network);
  // Whatever it gets once, it has then.
  while (storm.sequence() < packets / 10) ASSERT_TRUE(storm.Batch()) << storm.sequence();
  const Belongings before = BelongingsOf(process.pid());
  ASSERT_GT(before.kib, 0u);
  for (auto next = std::chrono::steady_clock::now(); storm.sequence() < packets; next += kInterval) {
    std::this_thread::sleep_until(next);
    ASSERT_TRUE(storm.Batch()) << storm.sequence();
  }
  const Belongings after = BelongingsOf(process.pid());
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_LE(after.kib, before.kib);
}

TEST_F(NetProcessTest, EndsWithItsBroker) {
  TapNetwork network(2);
  DeviceProcess process(*io_, Net(network));
  process.HangUp();
  EXPECT_NE(process.AwaitDeath().find("ended with status 0"), std::string::npos);
}

DeviceProcess::Options NetOnALink(bool link_down = false) {
  return {.configure =
              [link_down](control::VmConfig::Builder vm) {
                auto net = ConfigureUserNet(vm);
                net.getMac()[5] = kGuest;
                net.setLinkDown(link_down);
              },
          .plan = broker::PlanNets,
          .plan_name = "net0"};
}

// The net process of user-mode networking, with this program as its outside. Takes no rights.
class NetOnALinkTest : public testing::Test {
 protected:
  NetOnALinkTest()
      : process_(std::make_unique<DeviceProcess>(*io_, NetOnALink())),
        link_(OrThrow(MapPacketLink(process_->plan().packets->memory.get()))),
        sent_(&link_->to_outside),
        arriving_(&link_->to_net),
        function_(*process_) {
    function_.Start(FeatureBit(15) | FeatureBit(16) | FeatureBit(17) | FeatureBit(53), 3);
  }
  std::string TakeSent() {
    std::string frame(2000, 0);
    const iovec piece{frame.data(), frame.size()};
    frame.resize(OrThrow(sent_.Pop(std::span(&piece, 1))));
    return frame;
  }
  void Arrive(const std::string& frame) {
    const iovec piece{const_cast<char*>(frame.data()), frame.size()};
    EXPECT_TRUE(OrThrow(arriving_.Push(std::span(&piece, 1))));
    if (arriving_.TakeWakeRequest()) SignalEventFd(process_->plan().packets->doorbell.get());
  }

  // On the heap: their destructors may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::unique_ptr<DeviceProcess> process_;
  PacketLinkMemory* link_;
  PacketConsumer sent_;
  PacketProducer arriving_;
  NetFunction function_;
};

TEST_F(NetOnALinkTest, CarriesPacketsBothWays) {
  const std::string out = TestFrame(1514, kHost, kGuest), in = TestFrame(1400, kGuest, kHost);
  for (unsigned i = 0; i < 20; ++i) {
    function_.Send(out);
    EXPECT_EQ(TakeSent(), out);
    function_.Post(0, kData, 2000);
    Arrive(in);
    EXPECT_EQ(function_.Wait(0).length, kHeader + 1400);
    EXPECT_EQ(function_.queue(0).GetText(kData + kHeader, 1400), in);
  }
}

TEST_F(NetOnALinkTest, HasNoOffloadsToDoWithout) {
  EXPECT_EQ(function_.DeviceFeatures() & (kOffloads | FeatureBit(2)), 0u);
}

TEST_F(NetOnALinkTest, AnInterruptThatItHoldsBackComesInTheEnd) {
  // 255 packets or 16 ms.
  EXPECT_EQ(function_.Control(2, {6, 0, '\xFF', 0, 0, 0, 0, '\x40', 0, 0}), 0);
  for (int i = 0; i < 3; ++i) {
    function_.Send(TestFrame(600, kHost, kGuest));
    EXPECT_EQ(TakeSent(), TestFrame(600, kHost, kGuest));
  }
}

TEST_F(NetOnALinkTest, ReportsWhatItCarried) {
  function_.Send(TestFrame(600, kHost, kGuest));
  function_.Send(TestFrame(60, kHost, kGuest + 1));
  function_.Post(0, kData, 2000);
  Arrive(TestFrame(700, kGuest, kHost));
  function_.Wait(0);
  const auto response = process_->device().reportNetRequest().send().wait(process_->wait());
  const auto report = response.getReport();
  EXPECT_EQ(report.getLink(), control::LinkState::UP);
  EXPECT_EQ(report.getSent().getBytes(), 600u);
  EXPECT_EQ(report.getSent().getRefused(), 1u);
  EXPECT_EQ(report.getReceived().getBytes(), 700u);
}

TEST_F(NetOnALinkTest, ItsLinkGoesOffAndOn) {
  const auto set = [&](bool up) {
    auto request = process_->device().setLinkRequest();
    request.setUp(up);
    return request.send().wait(process_->wait()).getLink();
  };
  EXPECT_EQ(set(false), control::LinkState::DOWN);
  EXPECT_TRUE(process_->AwaitInterrupt(0));
  function_.Send(TestFrame(600, kHost, kGuest));
  EXPECT_EQ(TakeSent(), "");
  function_.Post(0, kData, 2000);
  Arrive(TestFrame(700, kGuest, kHost));
  EXPECT_EQ(set(true), control::LinkState::UP);
  EXPECT_TRUE(process_->AwaitInterrupt(0));
  Arrive(TestFrame(701, kGuest, kHost));
  EXPECT_EQ(function_.Wait(0).length, kHeader + 701);
  function_.Send(TestFrame(601, kHost, kGuest));
  EXPECT_EQ(TakeSent(), TestFrame(601, kHost, kGuest));
}

TEST_F(NetOnALinkTest, ItsLinkCanBeOffFromTheStart) {
  DeviceProcess process(*io_, NetOnALink(true));
  const auto response = process.device().reportNetRequest().send().wait(process.wait());
  EXPECT_EQ(response.getReport().getLink(), control::LinkState::DOWN);
}

TEST_F(NetOnALinkTest, ItsLinkIsDownWhenItsOutsideHasEndedAndItGoesOn) {
  process_->device().loseOutsideRequest().send().wait(process_->wait());
  EXPECT_TRUE(process_->AwaitInterrupt(0));
  const auto response = process_->device().reportNetRequest().send().wait(process_->wait());
  EXPECT_EQ(response.getReport().getLink(), control::LinkState::GONE);
  function_.Send(TestFrame(60, kHost, kGuest));
}

TEST_F(NetOnALinkTest, AnOutsideThatBreaksTheRingIsGoneAndNothingElseIs) {
  function_.Post(0, kData, 2000);
  link_->to_net.head += 3;
  SignalEventFd(process_->plan().packets->doorbell.get());
  EXPECT_TRUE(process_->AwaitInterrupt(0));
  link_->to_outside.tail += 3;
  function_.Send(TestFrame(60, kHost, kGuest));
}

}  // namespace
}  // namespace bulkhead::test
