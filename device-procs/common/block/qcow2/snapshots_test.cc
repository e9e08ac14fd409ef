// SPDX-License-Identifier: Apache-2.0
// Jobs on a whole image: snapshots, sizes, compressed clusters, repairs.
#include "device-procs/common/block/qcow2/snapshots.h"

#include "device-procs/common/block/qcow2/compression.h"
#include "device-procs/common/block/qcow2/qcow2_fixture.h"
#include "device-procs/common/block/qcow2/table_walk.h"

namespace bulkhead::qcow2::test {
namespace {

class Qcow2Jobs : public Qcow2Disk {
 protected:
  // Runs a task that reads what lies below as well.
  template <typename T>
  T Pumped(device::Task<T> task) {
    std::optional<T> value;
    device::Spawn(std::move(task), [&](T result) { value.emplace(std::move(result)); });
    Pump();
    return std::move(value).value();
  }
};

TEST_P(Qcow2Jobs, SnapshotsKeepWhatTheDiskWas) {
  if (GetParam().refcount_order == 0) {
    RandomBatch();
    const auto refused = file_.Do(CreateSnapshot(*disk_, "first", 1));
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("refcounts of 1 bits"), std::string::npos) << refused.error().message;
    return;
  }
  std::vector<std::vector<std::byte>> kept;
  for (int i = 0; i < 3; ++i) {
    RandomBatch();
    OrThrow(file_.Do(CreateSnapshot(*disk_, "s" + std::to_string(i), 1'600'000'000'000'000'000 + i)));
    kept.push_back(model_);
    ExpectClean();
    RandomBatch();
    Compare();
  }
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
  const std::string base = GetParam().backing ? "qemu-img rebase -u -f qcow2 -b BASE -F raw IMAGE && " : "";
  for (int i = 0; i < 3; ++i) {
    Judge(base + "qemu-img convert -f qcow2 -O raw -l snapshot.name=s" + std::to_string(i) +
              " IMAGE IMAGE.out && cmp IMAGE.out RAW; s=$?; rm -f IMAGE.out; exit $s",
          kept[static_cast<size_t>(i)]);
  }
  EXPECT_EQ(file_.Do(ShowSnapshot(*disk_, "s1")).error().code, EINVAL);
  OrThrow(file_.Do(ApplySnapshot(*disk_, "s1")));
  model_ = kept[1];
  ExpectClean();
  Compare();
  RandomBatch();
  Compare();
  OrThrow(file_.Do(DeleteSnapshot(*disk_, "1")));
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
  Open();
  const auto table = OrThrow(file_.Do(ReadSnapshots(disk_->state())));
  ASSERT_EQ(table.snapshots.size(), 2u);
  EXPECT_EQ(table.snapshots[0].name, "s1");
  EXPECT_EQ(table.snapshots[0].id, "2");
  EXPECT_EQ(table.snapshots[0].disk_bytes, kDiskBytes);
  EXPECT_EQ(file_.Do(ApplySnapshot(*disk_, "s0")).error().code, ENOENT);
  OrThrow(file_.Do(DeleteSnapshot(*disk_, "s1")));
  OrThrow(file_.Do(DeleteSnapshot(*disk_, "s2")));
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
}

TEST_P(Qcow2Jobs, GrowsAndShrinks) {
  RandomBatch();
  if (GetParam().backing) {
    // What a larger disk gains is not its backing file's.
    OrThrow(file_.Do(disk_->Close()));
    base_.bytes.resize(kDiskBytes * 3, std::byte{0x55});
    std::fill(base_.bytes.begin() + kDiskBytes / 2 + 512, base_.bytes.begin() + kDiskBytes, std::byte{0});
    Open();
  }
  const auto grow = [&] { OrThrow(Pumped(Resize(*disk_, kDiskBytes * 3, false))); };
  grow();
  ExpectClean();
  Request write;
  write.bytes.assign(4096, std::byte{0x77});
  write.vector = {write.bytes.data(), write.bytes.size()};
  disk_->Write(kDiskBytes * 3 - 4096, {&write.vector, 1}, write);
  Pump();
  ASSERT_TRUE(write.ended && write.error == 0);
  auto gained = Start(false, kDiskBytes, kDiskBytes);
  Pump();
  EXPECT_EQ(gained->bytes, std::vector<std::byte>(kDiskBytes));
  EXPECT_EQ(file_.Do(Resize(*disk_, kDiskBytes, false)).error().code, EINVAL);
  OrThrow(file_.Do(Resize(*disk_, kDiskBytes, true)));
  ExpectClean();
  Compare();
  JudgeDisk();
  // What was cut off does not show again.
  grow();
  auto read = Start(false, kDiskBytes * 3 - 4096, 4096);
  Pump();
  EXPECT_EQ(read->bytes, std::vector<std::byte>(4096));
}

TEST_P(Qcow2Jobs, CompressedClustersReadAndAreReplaced) {
  WriteCompressed(2);
  Compare();
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
  for (int i = 0; i < 4; ++i) RandomBatch();
  Compare();
  OrThrow(file_.Do(disk_->Close()));
  ExpectClean();
  JudgeDisk();
}

TEST_P(Qcow2Jobs, LeaksAndWrongRefcountsAreRepaired) {
  RandomBatch();
  OrThrow(file_.Do(disk_->Close()));
  const uint64_t used = disk_->state().file_end >> GetParam().cluster_bits;
  // One that nothing names, and one that something names counts as free.
  OrThrow(file_.Do(disk_->refcounts().Set((used - 1) << GetParam().cluster_bits, 0)));
  auto leaked = OrThrow(file_.Do(disk_->refcounts().Allocate(1)));
  leaked = OrThrow(file_.Do(disk_->refcounts().Allocate(1)));
  OrThrow(file_.Do(disk_->Close()));
  auto report = OrThrow(file_.Do(Check(*disk_, Repair::kNone)));
  EXPECT_GE(report.corruptions + report.leaks, 1u);
  report = OrThrow(file_.Do(Check(*disk_, Repair::kAll)));
  EXPECT_EQ(report.corruptions, report.corruptions_fixed);
  EXPECT_EQ(report.leaks, report.leaks_fixed);
  ExpectClean();
  JudgeDisk();
}

INSTANTIATE_TEST_SUITE_P(Variants, Qcow2Jobs, testing::ValuesIn(kVariants),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace bulkhead::qcow2::test
