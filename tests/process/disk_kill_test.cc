// SPDX-License-Identifier: Apache-2.0
// The real disk process, killed in the middle of its work on a qcow2 image again and again: QEMU finds nothing wrong
// with the image but leaks, every block has what a flush promised or what came after it, and the next process goes on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "tests/process/disk_load.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr uint64_t kBlocks = 8192;

class DiskKill : public testing::TestWithParam<const char*> {
 protected:
  int Shell(const std::string& command) const {
    return std::system(("cd " + dir_.path() + " && { " + command + "; } >shell.log 2>&1").c_str());
  }
  // A base of half the size, and an image over it.
  void Make() {
    disk_.assign(kBlocks, BlockHistory(0));
    std::ofstream base(dir_.Path("base"), std::ios::binary);
    for (uint64_t i = 0; i < kBlocks / 2; ++i) {
      const std::vector<uint64_t> words(kBlock / sizeof(uint64_t), ++next_value_);
      base.write(reinterpret_cast<const char*>(words.data()), kBlock);
      disk_[i] = BlockHistory(next_value_);
    }
    base.close();
    ASSERT_EQ(Shell(std::string("qemu-img create -f qcow2 -b base -F raw -o ") + GetParam() + " top " +
                    std::to_string(kBlocks * kBlock)),
              0)
        << ReadFile(dir_.Path("shell.log"));
  }
  std::unique_ptr<DeviceProcess> StartProcess() {
    return std::make_unique<DeviceProcess>(
        *io_, DeviceProcess::Options{
                  .configure =
                      [this](control::VmConfig::Builder vm) {
                        auto disk = vm.initDisks(1)[0];
                        disk.setFile(MakeFile(OwnFd(::open(dir_.Path("top").c_str(), O_RDWR | O_CLOEXEC))));
                        disk.setName("top");
                        disk.setFormat(control::ImageFormat::QCOW2);
                        auto base = disk.initBacking(1)[0];
                        base.setFile(MakeFile(OwnFd(::open(dir_.Path("base").c_str(), O_RDONLY | O_CLOEXEC))));
                        base.setName("base");
                      },
                  .plan = broker::PlanDisks});
  }
  // After a kill. What is there now is what the next round starts from.
  void Judge() {
    const int checked = Shell("qemu-img check -f qcow2 top; s=$?; [ $s = 0 ] || [ $s = 3 ]");
    ASSERT_EQ(checked, 0) << ReadFile(dir_.Path("shell.log"));
    ASSERT_EQ(Shell("qemu-img convert -f qcow2 -O raw top raw"), 0) << ReadFile(dir_.Path("shell.log"));
    const std::string raw = ReadFile(dir_.Path("raw"));
    ASSERT_EQ(raw.size(), kBlocks * kBlock);
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const uint64_t value = BlockValue(std::as_bytes(std::span(raw)), i);
      ASSERT_TRUE(disk_[i].Allows(value)) << "block " << i << " has the value " << value;
      disk_[i] = BlockHistory(value);
    }
  }

  TempDir dir_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::vector<BlockHistory> disk_;
  uint64_t next_value_ = 0;
  std::mt19937_64 random_{1};
};

TEST_P(DiskKill, LeavesAnImageWithWhatFlushesPromised) {
  constexpr int kKills = 8;
  Make();
  for (int i = 0; i < kKills && !HasFatalFailure(); ++i) {
    SCOPED_TRACE("kill " + std::to_string(i));
    const auto process = StartProcess();
    DiskLoad load(*process, disk_, next_value_, random_);
    load.Run(static_cast<unsigned>(1 + random_() % 200));
    ::usleep(static_cast<useconds_t>(random_() % 2000));
    ASSERT_EQ(::kill(process->pid(), SIGKILL), 0);
    EXPECT_NE(process->AwaitDeath().find("signal 9"), std::string::npos);
    Judge();
  }
  // One that is let finish loses nothing, though it is killed after that as well.
  const auto process = StartProcess();
  DiskLoad load(*process, disk_, next_value_, random_);
  load.Run(100);
  load.Settle();
  ASSERT_EQ(::kill(process->pid(), SIGKILL), 0);
  (void)process->AwaitDeath();
  Judge();
}

INSTANTIATE_TEST_SUITE_P(Layouts, DiskKill,
                         testing::Values("cluster_size=64k", "cluster_size=4k,refcount_bits=32", "cluster_size=512"));

}  // namespace
}  // namespace bulkhead::test
