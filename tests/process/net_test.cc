// SPDX-License-Identifier: Apache-2.0
// The real net process, sandboxed as ever, between a real tap and a fake runner's driver.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "device-procs/common/virtqueue_driver.h"
#include "ipc/packet_ring.h"
#include "ipc/rpc.h"
#include "tests/process/harness.h"
#include "tests/process/process_function.h"
#include "tests/process/tap_network.h"
#include "tests/process/vhost.h"

namespace bulkhead::test {
namespace {

using device::FeatureBit;
using device::test::QueueDriver;
using device::test::Used;

constexpr uint16_t kQueueSize = 16;
constexpr Gpa kData{0x100000};
constexpr uint32_t kHeader = 12;
constexpr uint8_t kGuest = 7, kHost = 1;
// Checksums and segments both ways, merged buffers, control queue, many pairs.
constexpr uint64_t kOffloads = FeatureBit(0) | FeatureBit(1) | FeatureBit(7) | FeatureBit(8) | FeatureBit(11);
constexpr uint64_t kFeatures = kOffloads | FeatureBit(15) | FeatureBit(17) | FeatureBit(22);

DeviceProcess::Options Net(TapNetwork& network, bool vhost = false) {
  return {.configure =
              [&network, vhost](control::VmConfig::Builder vm) {
                auto net = vm.initNets(1)[0];
                std::vector<OwnFd> queues = network.TakeQueues();
                auto taps = net.initTaps(static_cast<unsigned>(queues.size()));
                for (unsigned i = 0; i < taps.size(); ++i) taps.set(i, MakeFile(std::move(queues[i])));
                net.setAnyMac(vhost);
                auto vhosts = net.initVhosts(vhost ? taps.size() : 0);
                for (unsigned i = 0; i < vhosts.size(); ++i) {
                  vhosts.set(i, MakeFile(OwnFd(::open("/dev/vhost-net", O_RDWR | O_CLOEXEC))));
                }
                auto mac = net.initMac(6);
                mac[0] = 2;
                mac[5] = kGuest;
                net.setMtu(1500);
              },
          .plan = broker::PlanNets};
}

class NetFunction final : public ProcessFunction {
 public:
  using ProcessFunction::ProcessFunction;

  void Start(uint64_t features, uint16_t queues, uint16_t queue_size = kQueueSize) {
    ASSERT_TRUE(Negotiate(device::test::kVersion1 | features));
    queues_.clear();
    OrThrow(process().memory().Fill(Gpa{0x10000}, 0x2000u * queues, std::byte{0}));
    for (uint16_t i = 0; i < queues; ++i) {
      queues_.push_back(std::make_unique<QueueDriver>(process().memory(), Gpa{0x10000u + 0x2000u * i}, queue_size));
      SetUpQueue(i, queues_.back()->layout());
    }
    EnableMsix(static_cast<uint16_t>(queues + 1));
    GoLive();
  }
  // Goes on with the queues of another process's function, in memory that is a copy.
  void TakeOverQueues(const NetFunction& other) {
    for (const auto& queue : other.queues_) {
      queues_.push_back(std::make_unique<QueueDriver>(process().memory(), *queue));
    }
  }
  QueueDriver& queue(uint16_t index) { return *queues_[index]; }
  Used Wait(uint16_t index) {
    EXPECT_TRUE(process().AwaitInterrupt(index + 1u));
    return queue(index).TakeUsed().value_or(Used{});
  }
  // Until so many are used; false if one is missing.
  bool WaitFor(uint16_t index, unsigned count) {
    for (unsigned used = 0; used < count;) {
      if (queue(index).TakeUsed()) {
        ++used;
      } else if (!process().AwaitInterrupt(index + 1u)) {
        return false;
      }
    }
    return true;
  }
  void Send(const std::string& frame, uint16_t pair = 0) {
    const auto index = static_cast<uint16_t>(2 * pair + 1);
    queue(index).PutText(kData, std::string(kHeader, '\0') + frame);
    queue(index).Add({{kData, static_cast<uint32_t>(kHeader + frame.size())}});
    process().Kick(index);
    Wait(index);
  }
  void Post(uint16_t index, Gpa at, uint32_t bytes) {
    queue(index).Add({{at, bytes, true}});
    process().Kick(index);
  }
  // The device's answer.
  int Control(uint16_t index, const std::string& command) {
    queue(index).PutText(kData, command);
    queue(index).Add({{kData, static_cast<uint32_t>(command.size())}, {kData + 0x100, 1, true}});
    process().Kick(index);
    Wait(index);
    return queue(index).Get<uint8_t>(kData + 0x100);
  }
  int SetPairs(uint16_t index, uint8_t count) { return Control(index, {4, 0, static_cast<char>(count), 0}); }

 private:
  std::vector<std::unique_ptr<QueueDriver>> queues_;
};

class NetProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
  }
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
};

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

// The same where the kernel carries the packets.
class NetWithVhostTest : public NetProcessTest {
 protected:
  static constexpr Gpa kRoom{0x180000};

  void SetUp() override {
    NetProcessTest::SetUp();
    if (const std::string why = WhyNoVhost(); !why.empty()) GTEST_SKIP() << why;
  }
  // One frame each way.
  static void ExpectCarries(NetFunction& function, const TapNetwork& network, size_t bytes) {
    function.Send(TestFrame(bytes, kHost, kGuest));
    EXPECT_EQ(network.Receive(), TestFrame(bytes, kHost, kGuest));
    function.Post(0, kRoom, 2000);
    network.Send(TestFrame(bytes, kGuest, kHost));
    EXPECT_EQ(function.Wait(0).length, kHeader + bytes);
    EXPECT_EQ(function.queue(0).GetText(kRoom + kHeader, bytes), TestFrame(bytes, kGuest, kHost));
  }
  static bool NeedsReset(NetFunction& function) { return (function.Status() & device::test::kNeedsReset) != 0; }
};

TEST_F(NetWithVhostTest, CarriesPacketsBothWays) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(kFeatures & ~FeatureBit(22), 3);
  EXPECT_TRUE(HasVhostThreads(process.pid()));
  for (const size_t bytes : {60, 1400, 1514}) ExpectCarries(function, network, bytes);
  function.Post(0, kData, 1000);
  function.Post(0, kData + 1000, 1000);
  network.Send(TestFrame(1400, kGuest, kHost));
  EXPECT_EQ(function.Wait(0).length, 1000u);
  EXPECT_EQ(function.queue(0).TakeUsed().value_or(Used{}).length, kHeader + 400);
  EXPECT_EQ(function.queue(0).GetText(kData + kHeader, 1400), TestFrame(1400, kGuest, kHost));
}

TEST_F(NetWithVhostTest, TheDriverChoosesHowManyPairs) {
  TapNetwork network(2);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(kFeatures, 5);
  for (unsigned i = 0; i < 4; ++i) ExpectCarries(function, network, 60);
  EXPECT_EQ(function.SetPairs(4, 2), 0);
  function.Send(TestFrame(60, kHost, kGuest), 1);
  EXPECT_EQ(network.Receive(), TestFrame(60, kHost, kGuest));
  EXPECT_EQ(function.SetPairs(4, 3), 1);
  EXPECT_EQ(function.SetPairs(4, 1), 0);
  for (unsigned i = 0; i < 4; ++i) ExpectCarries(function, network, 60);
  // One that knows of no second pair has its control queue there.
  function.Start((kFeatures & ~FeatureBit(22)) | FeatureBit(18), 3);
  function.queue(2).PutText(kData, std::string{0, 0, 1});
  function.queue(2).Add({{kData, 3}, {kData + 8, 1, true}});
  process.Kick(2);
  function.Wait(2);
  EXPECT_EQ(function.queue(2).Get<uint8_t>(kData + 8), 0);
  ExpectCarries(function, network, 60);
}

TEST_F(NetWithVhostTest, AMaskedVectorIsPendingUntilItIsNot) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(0, 2);
  ExpectCarries(function, network, 60);
  function.Mask(1);
  function.Post(0, kRoom, 2000);
  network.Send(TestFrame(61, kGuest, kHost));
  EXPECT_TRUE(Eventually([&] { return function.ReadBar(virtio_pci::kMsixPba, 8) == 2; }));
  EXPECT_FALSE(process.HasInterrupt(1));
  function.Unmask(1);
  EXPECT_EQ(function.Wait(0).length, kHeader + 61);
  EXPECT_EQ(function.ReadBar(virtio_pci::kMsixPba, 8), 0u);
  ExpectCarries(function, network, 62);
}

TEST_F(NetWithVhostTest, APauseLeavesTheQueuesAlone) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(0, 2);
  ExpectCarries(function, network, 60);
  process.device().pauseRequest().send().wait(process.wait());
  function.Post(0, kRoom, 2000);
  network.Send(TestFrame(61, kGuest, kHost));
  function.queue(1).PutText(kData, std::string(kHeader, '\0') + TestFrame(62, kHost, kGuest));
  function.queue(1).Add({{kData, kHeader + 62}});
  process.Kick(1);
  // It has heard of both by the time that it answers this.
  function.Status();
  EXPECT_EQ(function.queue(0).UsedIndex(), 1);
  EXPECT_FALSE(network.HasFrame());
  process.device().resumeRequest().send().wait(process.wait());
  EXPECT_EQ(function.Wait(0).length, kHeader + 61);
  EXPECT_EQ(network.Receive(), TestFrame(62, kHost, kGuest));
}

// Into a process that carries packets itself, and back.
TEST_F(NetWithVhostTest, AnySavedStateGoesOnWithVhostAndWithout) {
  std::vector<std::unique_ptr<TapNetwork>> networks;
  std::vector<std::unique_ptr<DeviceProcess>> processes;
  std::vector<std::unique_ptr<NetFunction>> functions;
  for (const bool vhost : {true, false, true}) {
    networks.push_back(std::make_unique<TapNetwork>(1));
    processes.push_back(std::make_unique<DeviceProcess>(*io_, Net(*networks.back(), vhost)));
    DeviceProcess& process = *processes.back();
    functions.push_back(std::make_unique<NetFunction>(process));
    NetFunction& function = *functions.back();
    if (processes.size() == 1) {
      function.Start(kFeatures & ~FeatureBit(22), 3);
      function.Post(0, kRoom, 2000);
    } else {
      DeviceProcess& before = *processes[processes.size() - 2];
      before.device().pauseRequest().send().wait(before.wait());
      auto saved = before.device().saveRequest().send().wait(before.wait());
      std::vector<std::byte> bytes(DeviceProcess::kMemoryBytes);
      OrThrow(before.memory().Read(Gpa{0}, bytes));
      OrThrow(process.memory().Write(Gpa{0}, bytes));
      function.TakeOverQueues(*functions[functions.size() - 2]);
      process.device().pauseRequest().send().wait(process.wait());
      auto restore = process.device().restoreRequest();
      restore.getState().set(saved.getState());
      restore.send().wait(process.wait());
      process.device().resumeRequest().send().wait(process.wait());
    }
    // The buffer that was there before is taken first.
    networks.back()->Send(TestFrame(300, kGuest, kHost));
    EXPECT_EQ(function.Wait(0).length, kHeader + 300);
    EXPECT_EQ(function.queue(0).GetText(kRoom + kHeader, 300), TestFrame(300, kGuest, kHost));
    ExpectCarries(function, *networks.back(), 500);
    function.Post(0, kRoom, 2000);
  }
}

TEST_F(NetWithVhostTest, AGuestThatBreaksItsQueuesHasToResetAndReachesNothing) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  const auto expect_broken = [&](uint16_t queue, const char* what) {
    process.Kick(queue);
    EXPECT_TRUE(process.AwaitInterrupt(0)) << what;
    EXPECT_TRUE(NeedsReset(function)) << what;
    EXPECT_FALSE(network.HasFrame()) << what;
    function.Start(0, 2);
    EXPECT_FALSE(NeedsReset(function)) << what;
  };
  function.Start(0, 2);
  function.queue(1).SetAvailableIndex(kQueueSize + 1);
  expect_broken(1, "index");
  function.queue(1).Add({{Gpa{DeviceProcess::kMemoryBytes - 8}, 2000}});
  expect_broken(1, "a buffer beyond memory");
  // An address of the process, where the kernel would find something.
  function.queue(1).Add({{Gpa{0x7F00'0000'0000}, 2000}});
  expect_broken(1, "a buffer that is none");
  function.queue(1).Offer(kQueueSize);
  expect_broken(1, "a descriptor that is none");
  function.queue(0).Add({{kData, 2000}});
  network.Send(TestFrame(60, kGuest, kHost));
  expect_broken(0, "a buffer that may not be written");
  // What becomes of the queue of one that is no packet is the kernel's to say: some tell, some lose it, some try for
  // ever.
  function.queue(1).Add({{kData, 5}});
  process.Kick(1);
  function.Status();
  function.Start(0, 2);
  EXPECT_FALSE(network.HasFrame());
  ExpectCarries(function, network, 60);
}

TEST_F(NetWithVhostTest, AGuestMayResetUnderLoad) {
  TapNetwork network(2);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  std::atomic<bool> enough = false;
  std::thread load([&] {
    while (!enough) network.TrySend(TestFrame(64, kGuest, kHost));
  });
  for (unsigned i = 0; i < 50; ++i) {
    function.Start(kFeatures, 5);
    EXPECT_EQ(function.SetPairs(4, static_cast<uint8_t>(1 + i % 2)), 0);
    for (uint16_t n = 0; n < 8; ++n) function.Post(0, kRoom + 2000 * n, 2000);
    function.Send(TestFrame(60, kHost, kGuest));
    EXPECT_FALSE(NeedsReset(function));
  }
  function.SetStatus(0);
  enough = true;
  load.join();
  // Nothing is written once it is reset.
  OrThrow(process.memory().Fill(kRoom, 16000, std::byte{0}));
  network.Send(TestFrame(64, kGuest, kHost));
  function.Status();
  EXPECT_EQ(function.queue(0).GetText(kRoom, 16000), std::string(16000, '\0'));
}

TEST_F(NetWithVhostTest, ATapThatIsGoneIsALinkThatIsDown) {
  TapNetwork network(2);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(FeatureBit(16), 2);
  ExpectCarries(function, network, 60);
  EXPECT_EQ(function.ReadBar(virtio_pci::kDeviceConfig + 6, 2), 1u);
  network.RemoveTap();
  EXPECT_TRUE(process.AwaitInterrupt(0));
  EXPECT_EQ(function.ReadBar(virtio_pci::kDeviceConfig + 6, 2), 0u);
  function.Start(FeatureBit(16), 2);
  EXPECT_FALSE(NeedsReset(function));
}

TEST_F(NetWithVhostTest, NothingIsLeftOfAProcessThatIsKilledUnderLoad) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start(0, 2);
  std::atomic<bool> enough = false;
  std::thread load([&] {
    while (!enough) network.TrySend(TestFrame(64, kGuest, kHost));
  });
  for (uint16_t n = 0; n < 8; ++n) function.Post(0, kRoom + 2000 * n, 2000);
  function.Send(TestFrame(60, kHost, kGuest));
  const pid_t pid = process.pid();
  EXPECT_TRUE(HasVhostThreads(pid));
  ::kill(pid, SIGKILL);
  process.AwaitDeath();
  EXPECT_TRUE(Eventually([&] { return !HasVhostThreads(pid); }));
  enough = true;
  load.join();
}

DeviceProcess::Options NetOnALink(bool link_down = false) {
  return {.configure =
              [link_down](control::VmConfig::Builder vm) {
                auto net = vm.initNets(1)[0];
                auto mac = net.initMac(6);
                mac[0] = 2;
                mac[5] = kGuest;
                net.setMtu(1500);
                net.setLinkDown(link_down);
                auto user = net.initUser();
                user.initNetwork4(4)[0] = 10;
                user.setPrefix4(24);
                user.setMtu(1500);
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
