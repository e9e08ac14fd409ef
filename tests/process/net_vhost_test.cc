// SPDX-License-Identifier: Apache-2.0
// The net process where the kernel carries the packets (vhost-net).
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "tests/process/harness.h"
#include "tests/process/net_function.h"
#include "tests/process/vhost.h"

namespace bulkhead::test {
namespace {

using device::FeatureBit;
using device::test::QueueDriver;
using device::test::Used;

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

// A packet that is on its way meanwhile may be lost, as on a wire; both queues go on.
TEST_F(NetWithVhostTest, AnotherProcessGoesOnUnderLoad) {
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, true));
  NetFunction function(process);
  function.Start((kFeatures | FeatureBit(18)) & ~FeatureBit(22), 3);
  for (unsigned death = 0; death < 10; ++death) {
    std::atomic<bool> enough = false;
    std::thread load([&] {
      while (!enough) network.TrySend(TestFrame(64, kGuest, kHost));
    });
    for (uint16_t n = 0; n < 8; ++n) function.Post(0, kRoom + 2000 * n, 2000);
    ASSERT_TRUE(function.WaitFor(0, 4));
    const pid_t before = process.pid();
    process.Replace();
    enough = true;
    load.join();
    EXPECT_FALSE(HasVhostThreads(before));
    EXPECT_TRUE(HasVhostThreads(process.pid()));
    EXPECT_FALSE(NeedsReset(function));
    ASSERT_TRUE(function.WaitFor(0, 4));
    // A successor interrupts once too often rather than not at all.
    for (const size_t vector : {2u, 3u}) (void)process.HasInterrupt(vector);
    function.Send(TestFrame(100 + death, kHost, kGuest));
    EXPECT_EQ(network.Receive(), TestFrame(100 + death, kHost, kGuest));
    // Its control queue is the process's own.
    EXPECT_EQ(function.Control(2, {0, 0, static_cast<char>(death % 2)}), 0);
  }
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

}  // namespace
}  // namespace bulkhead::test
