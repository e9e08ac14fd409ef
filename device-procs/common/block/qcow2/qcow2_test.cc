// SPDX-License-Identifier: Apache-2.0
// A qcow2 disk in use: it reads as what was written, QEMU agrees, and a power cut at any time costs nothing that was
// flushed.
#include "device-procs/common/block/qcow2/qcow2_fixture.h"

namespace bulkhead::qcow2::test {
namespace {

TEST_P(Qcow2Disk, IsWhatWasWritten) {
  for (int round = 0; round < 30; ++round) {
    RandomBatch();
    if (HasFatalFailure()) return;
    if (round % 5 == 0) Compare();
    if (round % 7 == 0) {
      OrThrow(file_.Do(disk_->Close()));
      Pump();
      Open();
    }
  }
  Compare();
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
}

// An image after a power cut: its tables agree but for leaks, and it has what the model had at the last flush wherever
// nothing was written since.
void CheckAfterPowerCut(const std::vector<std::byte>& bytes, MemoryFile& base, const std::vector<std::byte>& model,
                        const std::vector<bool>& touched) {
  std::vector<std::byte> content;
  ReadAfterPowerCut(bytes, base, content);
  if (testing::Test::HasFatalFailure()) return;
  for (size_t sector = 0; sector < touched.size(); ++sector) {
    if (touched[sector]) continue;
    ASSERT_EQ(std::memcmp(content.data() + sector * 512, model.data() + sector * 512, 512), 0)
        << "sector " << sector << " was flushed and is not there";
  }
}

TEST_P(Qcow2Disk, PowerCutLeavesWhatWasFlushedAndAtWorstLeaks) {
  constexpr int kRounds = 12;
  constexpr int kCutsInEachPeriod = 6;
  file_.recording = true;
  std::vector<std::byte> durable = file_.bytes;
  std::vector<std::byte> flushed = model_;
  for (int round = 0; round < kRounds; ++round) {
    RandomBatch();
    Flush();
    if (HasFatalFailure()) return;
    std::vector<bool> touched(kDiskBytes / 512);
    for (size_t i = 0; i < kDiskBytes; ++i) {
      // Whatever the batch wrote, even if it wrote the same.
      if (model_[i] != flushed[i]) touched[i / 512] = true;
    }
    for (const WriteLog::Period& period : file_.log.periods) {
      for (int cut = 0; cut < kCutsInEachPeriod; ++cut) {
        CheckAfterPowerCut(AfterPowerCut(durable, period, random_), base_, flushed, touched);
        if (HasFatalFailure()) return;
      }
      for (const WriteLog::Change& change : period) WriteLog::ApplyTo(durable, change);
    }
    ASSERT_EQ(durable, file_.bytes);
    file_.log.periods.assign(1, {});
    flushed = model_;
  }
}

// A flush promises what was written before it, also where another flush is just making that durable.
TEST_P(Qcow2Disk, AFlushBesideAnotherWaitsForWhatThatOneTook) {
  for (int round = 0; round < 20; ++round) {
    file_.recording = true;
    file_.log.periods.assign(1, {});
    std::vector<std::byte> durable = file_.bytes;
    const uint64_t offset = random_() % (kDiskBytes / 512) * 512;
    const auto value = static_cast<std::byte>(round + 1);
    auto write = Start(true, offset, 512, value);
    Pump();
    ASSERT_EQ(write->error, 0);
    std::fill_n(model_.begin() + static_cast<ptrdiff_t>(offset), 512, value);
    Request first, second;
    disk_->Flush(first);
    for (int steps = round % 5; steps != 0; --steps) file_.Step();
    disk_->Flush(second);
    while (!second.ended && (file_.Step() || base_.Step())) {
    }
    ASSERT_TRUE(second.ended && second.error == 0);
    for (size_t i = 0; i + 1 < file_.log.periods.size(); ++i) {
      for (const WriteLog::Change& change : file_.log.periods[i]) WriteLog::ApplyTo(durable, change);
    }
    CheckAfterPowerCut(durable, base_, model_, std::vector<bool>(kDiskBytes / 512));
    if (HasFatalFailure()) return;
    Pump();
    file_.recording = false;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, Qcow2Disk, testing::ValuesIn(kVariants),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace bulkhead::qcow2::test
