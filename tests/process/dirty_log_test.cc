// SPDX-License-Identifier: Apache-2.0
// What real device processes, sandboxed as ever, take note of as they write guest memory: exactly these pages where
// nobody dies, and none too few where processes are killed at any moment.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "tests/process/disk_load.h"
#include "tests/process/harness.h"
#include "tests/process/net_function.h"
#include "tests/process/vhost.h"

namespace bulkhead::test {
namespace {

using device::test::QueueDriver;
using Pages = std::set<uint64_t>;

constexpr uint64_t kPage = kGuestPageBytes;
constexpr uint64_t kMemoryPages = DeviceProcess::kMemoryBytes / kPage;
constexpr Gpa kQueue{0x10000};
constexpr uint64_t kQueuePage = kQueue.value / kPage;

Pages Take(const DirtyLog& log) {
  Pages pages;
  for (uint64_t word = 0; word < kMemoryPages / DirtyLog::kPagesPerWord; ++word) {
    const uint64_t marks = log.Take(word);
    for (uint64_t bit = 0; bit < DirtyLog::kPagesPerWord; ++bit) {
      if ((marks >> bit & 1) != 0) pages.insert(word * DirtyLog::kPagesPerWord + bit);
    }
  }
  return pages;
}

// A copy of guest memory that is kept by the logs, as a migration would, while its writers are at work.
class Copy {
 public:
  explicit Copy(DeviceProcess& process) : process_(process), bytes_(DeviceProcess::kMemoryBytes) {
    process.LogWrites();
    CopyPages(0, kMemoryPages);
    thread_ = std::thread([this] {
      while (!stop_) CopyMarked();
    });
  }
  ~Copy() {
    if (thread_.joinable()) Stop();
  }
  // Nobody writes any more: how many pages differ.
  size_t Differences() {
    Stop();
    CopyMarked();
    size_t differences = 0;
    for (uint64_t page = 0; page < kMemoryPages; ++page) {
      if (std::memcmp(bytes_.data() + page * kPage, Memory() + page * kPage, kPage) != 0) ++differences;
    }
    return differences;
  }

 private:
  const std::byte* Memory() { return process_.memory().mappings()[0].host; }
  void CopyPages(uint64_t first, uint64_t count) {
    std::memcpy(bytes_.data() + first * kPage, Memory() + first * kPage, count * kPage);
  }
  void CopyMarked() {
    for (const DirtyLog* log : {&process_.dirty_log(), &process_.own_dirty_log()}) {
      for (const uint64_t page : Take(*log)) CopyPages(page, 1);
    }
  }
  void Stop() {
    stop_ = true;
    thread_.join();
  }

  DeviceProcess& process_;
  std::vector<std::byte> bytes_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// One queue, and what is done with it.
class Driver final : public ProcessFunction {
 public:
  Driver(DeviceProcess& process, uint16_t queue_size, uint16_t first_region = 0)
      : ProcessFunction(process, first_region), queue_(process.memory(), kQueue, queue_size) {
    EXPECT_TRUE(Negotiate(device::test::kVersion1));
    SetUpQueue(0, queue_.layout());
    EnableMsix(2);
    GoLive();
  }
  QueueDriver& queue() { return queue_; }
  void Do(const std::vector<device::test::Buffer>& chain) {
    queue_.Add(chain);
    process().Kick(0);
    ASSERT_TRUE(process().AwaitInterrupt(1));
    ASSERT_TRUE(queue_.TakeUsed());
  }

 private:
  QueueDriver queue_;
};

DeviceProcess::Options Disk(const std::string& image, control::ImageFormat format = control::ImageFormat::RAW) {
  return {.configure =
              [image, format](control::VmConfig::Builder vm) {
                auto disk = vm.initDisks(1)[0];
                disk.setFile(MakeFile(OwnFd(::open(image.c_str(), O_RDWR | O_CLOEXEC))));
                disk.setName("image");
                disk.setFormat(format);
              },
          .plan = broker::PlanDisks};
}

TEST(DeviceDirtyLog, AnEntropyDeviceMarksWhatItFills) {
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = {}, .plan = broker::PlanRng});
  Driver driver(process, 8);
  driver.Do({{Gpa{0x200000}, 4096, true}});
  EXPECT_EQ(Take(process.dirty_log()), Pages{}) << "nobody asked for it";
  process.LogWrites();
  driver.Do({{Gpa{0x200800}, 4096, true}, {Gpa{0x300000}, 16, true}});
  EXPECT_EQ(Take(process.dirty_log()), (Pages{kQueuePage, 0x200, 0x201, 0x300}));
  process.dirty_log().SwitchOff();
  driver.Do({{Gpa{0x200000}, 4096, true}});
  EXPECT_EQ(Take(process.dirty_log()), Pages{});
}

TEST(DeviceDirtyLog, ADiskMarksWhatItReadsInto) {
  const TempDir dir;
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, Disk(dir.MakeImage("image", 1 << 20)));
  Driver driver(process, 8);
  process.LogWrites();
  constexpr Gpa kHeader{0x100000}, kStatus{0x101000}, kBuffer{0x200E00};
  const auto request = [&](uint32_t type, uint32_t bytes, bool writable) {
    driver.queue().Put(kHeader, type);
    driver.queue().Put<uint64_t>(kHeader + 8, 0);
    driver.Do({{kHeader, 16}, {kBuffer, bytes, writable}, {kStatus, 1, true}});
    return Take(process.dirty_log());
  };
  EXPECT_EQ(request(0, 512, true), (Pages{kQueuePage, 0x101, 0x200}));
  EXPECT_EQ(request(0, 2 * 4096, true), (Pages{kQueuePage, 0x101, 0x200, 0x201, 0x202}));
  EXPECT_EQ(request(1, 2 * 4096, false), (Pages{kQueuePage, 0x101})) << "what the guest wrote is KVM's to log";
  EXPECT_EQ(request(8, 20, true), (Pages{kQueuePage, 0x101, 0x200}));
}

TEST(DeviceDirtyLog, AConsoleMarksWhatItIsTyped) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const OwnFd outside(ends[0]);
  OwnFd inside(ends[1]);
  auto io = kj::setupAsyncIo();
  DeviceProcess process(
      io, {.configure =
               [&](control::VmConfig::Builder vm) { vm.initVirtioConsole().setInput(MakeFile(std::move(inside))); },
           .plan = broker::PlanConsole});
  Driver driver(process, 8, 1);
  process.LogWrites();
  ASSERT_EQ(::write(outside.get(), "hello", 5), 5);
  driver.Do({{Gpa{0x200FFE}, 64, true}});
  EXPECT_EQ(Take(process.dirty_log()), (Pages{kQueuePage, 0x200, 0x201}));
}

// One that is owned can set and clear every bit of its own log, and the log ends where memory does.
TEST(DeviceDirtyLog, ADeviceThatLiesHurtsNoOther) {
  auto io = kj::setupAsyncIo();
  DeviceProcess honest(io, {.configure = {}, .plan = broker::PlanRng});
  Driver driver(honest, 8);
  honest.LogWrites();
  DeviceProcess liar(io, {.configure = {}, .plan = broker::PlanRng});
  liar.LogWrites();
  liar.dirty_log().Mark(Gpa{0}, ~uint64_t{0});
  driver.Do({{Gpa{0x200000}, 16, true}});
  (void)Take(liar.dirty_log());
  EXPECT_EQ(Take(honest.dirty_log()), (Pages{kQueuePage, 0x200}));
}

class DirtyLogDeath : public testing::Test {
 protected:
  const unsigned kills_ = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) / 8;
  std::mt19937_64 random_{FromEnvironment("BULKHEAD_CHAOS_SEED", 1)};

  // A moment that has nothing to do with what the process does.
  void KillAndReplace(DeviceProcess& process) {
    ::usleep(static_cast<useconds_t>(random_() % 1500));
    ASSERT_EQ(::kill(process.pid(), SIGKILL), 0);
    process.Replace();
  }
};

TEST_F(DirtyLogDeath, ACopyOfADisksGuestMissesNothing) {
  constexpr uint64_t kBlocks = 8192;
  const TempDir dir;
  const std::string image = dir.MakeImage("image", kBlocks * kBlock);
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, Disk(image));
  std::vector<BlockHistory> disk(kBlocks, BlockHistory(0));
  uint64_t next_value = 0;
  DiskLoad load(process, disk, next_value, random_, [](Work, uint64_t, uint64_t) { return Fate::kSucceeds; });
  Copy copy(process);
  for (unsigned i = 0; i < kills_ && !HasFatalFailure(); ++i) {
    load.Run(20 + static_cast<unsigned>(random_() % 40));
    KillAndReplace(process);
  }
  load.Settle();
  process.device().pauseRequest().send().wait(process.wait());
  EXPECT_EQ(copy.Differences(), 0u);
}

TEST_F(DirtyLogDeath, ACopyOfAnEntropyDevicesGuestMissesNothing) {
  constexpr uint16_t kSize = 64;
  constexpr Gpa kBuffers{0x100000};
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = {}, .plan = broker::PlanRng});
  Driver driver(process, kSize);
  Copy copy(process);
  uint64_t given = 0, taken = 0;
  for (unsigned i = 0; i < kills_ && !HasFatalFailure(); ++i) {
    while (given - taken < kSize) driver.queue().Add({{kBuffers + given++ % kSize * kPage, 4096, true}});
    process.Kick(0);
    KillAndReplace(process);
    while (taken < given) {
      if (driver.queue().TakeUsed()) {
        ++taken;
      } else {
        ASSERT_TRUE(process.AwaitInterrupt(1)) << taken << " of " << given << " after kill " << i;
      }
    }
  }
  process.device().pauseRequest().send().wait(process.wait());
  EXPECT_EQ(copy.Differences(), 0u);
}

class NetDirtyLog : public NetProcessTest, public testing::WithParamInterface<bool> {};

TEST_P(NetDirtyLog, WhatArrivesIsMarkedWhoeverCarriesIt) {
  const bool vhost = GetParam();
  if (vhost && !WhyNoVhost().empty()) GTEST_SKIP() << WhyNoVhost();
  TapNetwork network(1);
  DeviceProcess process(*io_, Net(network, vhost));
  NetFunction net(process);
  net.Start(0, 2);
  const auto log = [&](bool on) {
    if (on) process.LogWrites();
    if (!on) process.dirty_log().SwitchOff();
    process.device().followLogRequest().send().wait(process.wait());
  };
  const auto receive = [&](Gpa at) {
    net.Post(0, at, 2048);
    network.Send(TestFrame(100, kGuest, kHost));
    EXPECT_EQ(net.Wait(0).length, kHeader + 100u);
    Pages pages = Take(process.dirty_log());
    // The other queue's kicks may be asked for at any time.
    pages.erase(kQueuePage + 2);
    return pages;
  };
  EXPECT_EQ(receive(Gpa{0x200000}), Pages{});
  log(true);
  EXPECT_EQ(receive(Gpa{0x200FF8}), (Pages{kQueuePage, 0x200, 0x201}));
  log(false);
  // Meanwhile what was marked before is.
  receive(Gpa{0x200000});
  EXPECT_EQ(receive(Gpa{0x200000}), Pages{});
}

INSTANTIATE_TEST_SUITE_P(Carriers, NetDirtyLog, testing::Bool(),
                         [](const auto& carrier) { return carrier.param ? "TheKernel" : "TheProcess"; });

}  // namespace
}  // namespace bulkhead::test
