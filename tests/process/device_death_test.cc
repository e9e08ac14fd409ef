// SPDX-License-Identifier: Apache-2.0
// Real device processes, killed at any moment under load, and what their successors make of it: each request is
// answered once, as if nobody had died. Without a VM, so that there can be many kills: BULKHEAD_CHAOS_FAULTS,
// BULKHEAD_CHAOS_SEED.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "ipc/ring.h"
#include "tests/process/disk_load.h"
#include "tests/process/harness.h"
#include "tests/process/process_function.h"

namespace bulkhead::test {
namespace {

using device::test::QueueDriver;

constexpr uint64_t kBlocks = 8192;

void PrintDelays(std::vector<int64_t> delays_ns) {
  if (delays_ns.empty()) return;
  std::ranges::sort(delays_ns);
  const auto at = [&](size_t percent) {
    return static_cast<double>(delays_ns[std::min(delays_ns.size() - 1, delays_ns.size() * percent / 100)]) / 1e6;
  };
  std::printf("%zu deaths; to the first answer of the next process: p50 %.1f ms, p99 %.1f ms\n", delays_ns.size(),
              at(50), at(99));
}

// A moment that has nothing to do with what the process does.
void Kill(DeviceProcess& process, std::mt19937_64& random) {
  ::usleep(static_cast<useconds_t>(random() % 1500));
  ASSERT_EQ(::kill(process.pid(), SIGKILL), 0);
}

// Nanoseconds from a disk's death to its successor's first answer.
int64_t KillUnderLoad(DeviceProcess& process, DiskLoad& load, std::mt19937_64& random) {
  Kill(process, random);
  const int64_t died_at_ns = MonotonicNow();
  process.Replace();
  load.Run(1);
  return MonotonicNow() - died_at_ns;
}

TEST(DeviceDeath, ADiskAnswersEachRequestOnce) {
  const unsigned kills = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100);
  std::mt19937_64 random(FromEnvironment("BULKHEAD_CHAOS_SEED", 1));
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", kBlocks * kBlock);
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure =
                                 [&](control::VmConfig::Builder vm) {
                                   auto disk = vm.initDisks(1)[0];
                                   disk.setFile(MakeFile(OwnFd(::open(image.c_str(), O_RDWR | O_CLOEXEC))));
                                   disk.setName("disk.img");
                                 },
                             .plan = broker::PlanDisks});
  std::vector<BlockHistory> disk(kBlocks, BlockHistory(0));
  uint64_t next_value = 0;
  std::vector<int64_t> delays_ns;
  {
    DiskLoad load(process, disk, next_value, random);
    for (unsigned i = 0; i < kills && !testing::Test::HasFatalFailure(); ++i) {
      load.Run(20 + static_cast<unsigned>(random() % 40));
      delays_ns.push_back(KillUnderLoad(process, load, random));
    }
    load.Settle();
  }
  for (BlockHistory& block : disk) block.Settled();
  const std::string content = ReadFile(image);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    ASSERT_TRUE(disk[i].Allows(BlockValue(std::as_bytes(std::span(content)), i))) << "block " << i;
  }
  PrintDelays(delays_ns);
}

// What the guest wrote and did not flush is named by tables that were in the dead process's memory.
class DiskImageDeath : public testing::TestWithParam<const char*> {};

TEST_P(DiskImageDeath, CostsNothingThatWasWritten) {
  constexpr uint64_t kImageBlocks = 65536;
  const unsigned kills = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) * 2 / 5;
  std::mt19937_64 random(FromEnvironment("BULKHEAD_CHAOS_SEED", 1));
  const TempDir dir;
  const auto shell = [&](const std::string& command) {
    return std::system(("cd " + dir.path() + " && { " + command + "; } >shell.log 2>&1").c_str());
  };
  ASSERT_EQ(shell(std::string("qemu-img create -f qcow2 -o ") + GetParam() + " image " +
                  std::to_string(kImageBlocks * kBlock)),
            0)
      << ReadFile(dir.Path("shell.log"));
  auto io = kj::setupAsyncIo();
  std::vector<BlockHistory> disk(kImageBlocks, BlockHistory(0));
  uint64_t next_value = 0;
  std::vector<int64_t> delays_ns;
  {
    DeviceProcess process(io,
                          {.configure =
                               [&](control::VmConfig::Builder vm) {
                                 auto config = vm.initDisks(1)[0];
                                 config.setFile(MakeFile(OwnFd(::open(dir.Path("image").c_str(), O_RDWR | O_CLOEXEC))));
                                 config.setName("image");
                                 config.setFormat(control::ImageFormat::QCOW2);
                               },
                           .plan = broker::PlanDisks});
    DiskLoad load(process, disk, next_value, random);
    for (unsigned i = 0; i < kills && !HasFatalFailure(); ++i) {
      load.Run(20 + static_cast<unsigned>(random() % 200));
      // Or as an upgrade does it.
      if (i % 8 == 7) process.device().pauseRequest().send().wait(process.wait());
      delays_ns.push_back(KillUnderLoad(process, load, random));
    }
    load.Settle();
    ASSERT_EQ(::kill(process.pid(), SIGKILL), 0);
    (void)process.AwaitDeath();
  }
  // Clusters that count as used and are not are all that a death may cost.
  ASSERT_EQ(shell("qemu-img check -f qcow2 image; s=$?; [ $s = 0 ] || [ $s = 3 ]"), 0)
      << ReadFile(dir.Path("shell.log"));
  ASSERT_EQ(shell("qemu-img convert -f qcow2 -O raw image raw"), 0) << ReadFile(dir.Path("shell.log"));
  const std::string content = ReadFile(dir.Path("raw"));
  for (uint64_t i = 0; i < kImageBlocks; ++i) {
    disk[i].Settled();
    ASSERT_TRUE(disk[i].Allows(BlockValue(std::as_bytes(std::span(content)), i))) << "block " << i;
  }
  PrintDelays(delays_ns);
}

INSTANTIATE_TEST_SUITE_P(Layouts, DiskImageDeath,
                         testing::Values("cluster_size=64k", "cluster_size=4k,refcount_bits=32", "cluster_size=512",
                                         "cluster_size=512,refcount_bits=1,compat=1.1"));

// Its guest sees each buffer come back once, in the order in which it was given.
TEST(DeviceDeath, AnEntropyDeviceFillsEachBufferOnce) {
  constexpr uint16_t kSize = 64;
  constexpr Gpa kBuffers{0x100000};
  const unsigned kills = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) / 4;
  std::mt19937_64 random(FromEnvironment("BULKHEAD_CHAOS_SEED", 1));
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = {}, .plan = broker::PlanRng});
  QueueDriver queue(process.memory(), Gpa{0x10000}, kSize);
  ProcessFunction function(process);
  ASSERT_TRUE(function.Negotiate(device::test::kVersion1));
  function.SetUpQueue(0, queue.layout());
  function.EnableMsix(2);
  function.GoLive();
  uint64_t given = 0, taken = 0;
  for (unsigned i = 0; i < kills; ++i) {
    while (given - taken < kSize) {
      queue.Add({{kBuffers + given++ % kSize * 4096, 4096, true}});
      if (given % 8 == 0) process.Kick(0);
    }
    process.Kick(0);
    Kill(process, random);
    process.Replace();
    while (taken < given) {
      const auto used = queue.TakeUsed();
      if (!used) {
        ASSERT_TRUE(process.AwaitInterrupt(1)) << taken << " of " << given << " after kill " << i;
        continue;
      }
      ASSERT_EQ(used->id, taken++ % kSize) << "after kill " << i;
      ASSERT_EQ(used->length, 4096u);
    }
    ASSERT_FALSE(queue.TakeUsed());
  }
}

// An exit is carried out once, and answered, whoever of the two does it.
TEST(DeviceDeath, AVcpuThatWaitsIsAnsweredByTheSuccessor) {
  const unsigned kills = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) / 4;
  std::mt19937_64 random(FromEnvironment("BULKHEAD_CHAOS_SEED", 1));
  auto io = kj::setupAsyncIo();
  DeviceProcess process(io, {.configure = {}, .plan = broker::PlanChipset});
  constexpr uint16_t kCmos = 0;
  for (unsigned i = 0; i < kills; ++i) {
    std::atomic<bool> stop = false;
    uint64_t wrong = 0, rounds = 0;
    // CMOS RAM keeps what was written there; index and data are two exits, and both are state.
    std::thread vcpu([&] {
      for (uint8_t value = 0; !stop; ++value, ++rounds) {
        const uint8_t cell = static_cast<uint8_t>(0x50 + value % 16);
        process.channel().Post(kCmos, 0, 1, cell);
        process.channel().Post(kCmos, 1, 1, value);
        process.channel().Write(kCmos, 0, 1, static_cast<uint8_t>(0x50 + (value + 1) % 16));
        process.channel().Post(kCmos, 0, 1, cell);
        if (process.channel().Read(kCmos, 1, 1) != value) ++wrong;
      }
    });
    Kill(process, random);
    process.Replace();
    ::usleep(1000);
    stop = true;
    vcpu.join();
    ASSERT_EQ(wrong, 0u) << "of " << rounds << " after kill " << i;
    ASSERT_FALSE(process.channel().failed());
  }
}

}  // namespace
}  // namespace bulkhead::test
