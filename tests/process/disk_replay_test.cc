// SPDX-License-Identifier: Apache-2.0
// What the real disk process writes to a qcow2 image, and when it flushes, is recorded, and then a power cut is tried
// after each write and with any of the writes between two flushes lost, torn or in place: every image that can be left
// has tables that agree, and on the disk is what a flush promised or what came after it.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <fstream>

#include "device-procs/common/block/qcow2/power_cut.h"
#include "tests/process/disk_load.h"
#include "tests/process/harness.h"
#include "tests/process/recording_file.h"

namespace bulkhead::test {
namespace {

using device::test::AfterPowerCut;
using device::test::MemoryFile;
using device::test::WriteLog;

constexpr uint64_t kBlocks = 2048;
constexpr int kRounds = 25;
constexpr unsigned kRequestsInARound = 40;
// Of so many images one is shown to QEMU as well.
constexpr unsigned kQemuJudges = 16;

class DiskReplay : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!RecordingFile::IsPossible()) GTEST_SKIP() << "recording what is written takes root and FUSE";
    MakeImage();
    file_ = std::make_unique<RecordingFile>(durable_, 1);
    process_ = std::make_unique<DeviceProcess>(
        *io_, DeviceProcess::Options{.configure = [this](control::VmConfig::Builder vm) { Configure(vm); },
                                     .plan = broker::PlanDisks});
  }
  void Configure(control::VmConfig::Builder vm) {
    auto disk = vm.initDisks(1)[0];
    disk.setFile(MakeFile(file_->Open(O_RDWR | O_DIRECT)));
    disk.setName("top");
    disk.setFormat(control::ImageFormat::QCOW2);
    disk.setDirectIo(true);
    auto base = disk.initBacking(1)[0];
    base.setFile(MakeFile(OwnFd(::open(dir_.Path("base").c_str(), O_RDONLY | O_CLOEXEC))));
    base.setName("base");
  }
  int Shell(const std::string& command) const {
    return std::system(("cd " + dir_.path() + " && { " + command + "; } >shell.log 2>&1").c_str());
  }
  void Save(const std::string& name, std::span<const std::byte> bytes) const {
    std::ofstream(dir_.Path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  // A base of half the size, and an image over it.
  void MakeImage() {
    disk_.assign(kBlocks, BlockHistory(0));
    for (uint64_t i = 0; i < kBlocks / 2; ++i) {
      const std::vector<uint64_t> words(kBlock / sizeof(uint64_t), ++next_value_);
      const auto block = std::as_bytes(std::span(words));
      base_.bytes.insert(base_.bytes.end(), block.begin(), block.end());
      disk_[i] = BlockHistory(next_value_);
    }
    Save("base", base_.bytes);
    ASSERT_EQ(Shell(std::string("qemu-img create -f qcow2 -b base -F raw -o ") + GetParam() + " top " +
                    std::to_string(kBlocks * kBlock)),
              0)
        << ReadFile(dir_.Path("shell.log"));
    const std::string image = ReadFile(dir_.Path("top"));
    const auto bytes = std::as_bytes(std::span(image));
    durable_.assign(bytes.begin(), bytes.end());
  }

  void Judge(const std::vector<std::byte>& image) {
    std::vector<std::byte> content;
    qcow2::test::ReadAfterPowerCut(image, base_, content);
    if (HasFatalFailure()) return;
    ASSERT_EQ(content.size(), kBlocks * kBlock);
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const uint64_t value = BlockValue(content, i);
      ASSERT_TRUE(disk_[i].Knows(value)) << "block " << i << " has the value " << value;
    }
    if (++judged_ % kQemuJudges != 0) return;
    Save("cut", image);
    ASSERT_EQ(Shell("qemu-img check -f qcow2 cut; s=$?; [ $s = 0 ] || [ $s = 3 ]"), 0)
        << ReadFile(dir_.Path("shell.log"));
  }
  // Every prefix, and as many times any of the period's changes.
  void TryPowerCutsIn(const WriteLog::Period& period) {
    std::vector<std::byte> prefix = durable_;
    for (const WriteLog::Change& change : period) {
      WriteLog::ApplyTo(prefix, change);
      Judge(prefix);
      if (!HasFatalFailure()) Judge(AfterPowerCut(durable_, period, random_));
      if (HasFatalFailure()) return;
      ++changes_;
    }
  }

  TempDir dir_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  MemoryFile base_;
  std::vector<std::byte> durable_;  // what all periods that ended have left
  std::unique_ptr<RecordingFile> file_;
  std::unique_ptr<DeviceProcess> process_;
  std::vector<BlockHistory> disk_;
  uint64_t next_value_ = 0;
  uint64_t judged_ = 0;
  uint64_t changes_ = 0;
  std::mt19937_64 random_{1};
};

TEST_P(DiskReplay, EveryPowerCutLeavesWhatFlushesPromised) {
  DiskLoad load(*process_, disk_, next_value_, random_);
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    load.Run(kRequestsInARound);
    load.Settle();
    for (const WriteLog::Period& period : file_->TakePeriods()) {
      TryPowerCutsIn(period);
      if (HasFatalFailure()) return;
      for (const WriteLog::Change& change : period) WriteLog::ApplyTo(durable_, change);
    }
    // All of it has been flushed: nothing but the last is right any more.
    for (BlockHistory& block : disk_) block.Settled();
    Judge(durable_);
    if (HasFatalFailure()) return;
  }
  RecordProperty("writes", static_cast<int>(changes_));
  RecordProperty("images", static_cast<int>(judged_));
  EXPECT_GT(changes_, static_cast<uint64_t>(kRounds));
}

INSTANTIATE_TEST_SUITE_P(Layouts, DiskReplay,
                         testing::Values("cluster_size=64k", "cluster_size=4k,refcount_bits=32", "cluster_size=512"));

}  // namespace
}  // namespace bulkhead::test
