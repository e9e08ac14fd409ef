// SPDX-License-Identifier: Apache-2.0
// Files whose tables say what cannot be: a request fails or the image is refused, and nothing else happens to the file.
#include <gtest/gtest.h>

#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/create.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"
#include "device-procs/common/block/qcow2/snapshots.h"
#include "device-procs/common/block/qcow2/table_walk.h"

namespace bulkhead::qcow2 {
namespace {

using device::test::MemoryFile;

constexpr uint64_t kCluster = 4096;

struct Request final : device::BlockCompletion {
  void Completed(int e) override { error = e; }
  int error = -1;
};

class Qcow2Hostile : public testing::Test {
 protected:
  void Make(uint64_t disk_bytes) {
    NewImage image;
    image.size_bytes = disk_bytes;
    image.layout.cluster_bits = 12;
    OrThrow(file_.Do(CreateImage(file_, image)));
  }
  Result<void> Open(Purpose purpose = Purpose::kUse) {
    OpenOptions options;
    options.purpose = purpose;
    disk_ = std::make_unique<Qcow2Channel>(file_, device::BlockGeometry{.size_bytes = file_.bytes.size()}, offload_,
                                           options);
    return file_.Do(disk_->Open());
  }
  int Write(uint64_t offset, uint64_t size_bytes) {
    std::vector<std::byte> bytes(size_bytes, std::byte{0x55});
    const iovec vector{bytes.data(), bytes.size()};
    Request request;
    disk_->Write(offset, {&vector, 1}, request);
    file_.Drain();
    return request.error;
  }
  // A disk whose first cluster's entry is this.
  void MakeWithEntry(uint64_t entry) {
    Make(1 << 20);
    OrThrow(Open());
    ASSERT_EQ(Write(0, kCluster), 0);
    OrThrow(file_.Do(disk_->Close()));
    const uint64_t table = disk_->state().l1.entries[0] & kOffsetMask;
    StoreBe64(file_.bytes.data() + table, entry);
    OrThrow(Open());
  }
  void DiscardAll() {
    Request request;
    disk_->Discard(0, kCluster, request);
    file_.Drain();
    (void)file_.Do(disk_->Close()).ok();
  }
  CheckReport Checked(Repair repair) {
    OrThrow(Open(Purpose::kCheck));
    return OrThrow(file_.Do(Check(*disk_, repair)));
  }

  MemoryFile file_;
  device::InlineOffload offload_;
  std::unique_ptr<Qcow2Channel> disk_;
};

TEST_F(Qcow2Hostile, RefcountBlockPastWhatAFileCanBeIsRefused) {
  Make(1 << 20);
  StoreBe64(file_.bytes.data() + kCluster + 8, uint64_t{1} << 60);
  const auto before = file_.bytes;
  EXPECT_FALSE(Open().ok());
  EXPECT_EQ(file_.bytes, before);
}

TEST_F(Qcow2Hostile, DiskOfNoSizeGrowsAndKeepsItsHeader) {
  Make(0);
  EXPECT_EQ(Checked(Repair::kNone).leaks, 0u);
  OrThrow(Open());
  OrThrow(file_.Do(CreateSnapshot(*disk_, "empty", 1)));
  OrThrow(file_.Do(Resize(*disk_, 1 << 20, false)));
  ASSERT_EQ(Write(0, 8192), 0);
  OrThrow(file_.Do(disk_->Close()));
  OrThrow(Open());
  OrThrow(file_.Do(ApplySnapshot(*disk_, "empty")));
  OrThrow(file_.Do(disk_->Close()));
  const CheckReport report = Checked(Repair::kNone);
  EXPECT_EQ(report.leaks + report.corruptions, 0u) << report.messages[0];
  EXPECT_EQ(disk_->header().size_bytes, 0u);
}

TEST_F(Qcow2Hostile, ZeroesKeptPastTheEndAreNotWritten) {
  MakeWithEntry(kCopied | kZero | uint64_t{1} << 40);
  const size_t size = file_.bytes.size();
  EXPECT_EQ(Write(0, 512), EIO);
  EXPECT_EQ(file_.bytes.size(), size);
  EXPECT_NE(disk_->header().incompatible & kCorrupt, 0u);
}

TEST_F(Qcow2Hostile, TableThatIsDataAsWellIsNotGivenBack) {
  // The refcount table.
  MakeWithEntry(kCopied | kCluster);
  const std::vector<std::byte> before(file_.bytes.begin() + kCluster, file_.bytes.begin() + 3 * kCluster);
  DiscardAll();
  EXPECT_TRUE(std::equal(before.begin(), before.end(), file_.bytes.begin() + kCluster));
  EXPECT_NE(disk_->header().incompatible & kCorrupt, 0u);
}

TEST_F(Qcow2Hostile, GivingBackWhatNobodyCountsMakesNoTables) {
  for (const uint64_t entry : {kCopied | uint64_t{1} << 40, kCompressed | uint64_t{1} << 45}) {
    MakeWithEntry(entry);
    const size_t size = file_.bytes.size();
    DiscardAll();
    EXPECT_EQ(file_.bytes.size(), size);
    EXPECT_NE(disk_->header().incompatible & kCorrupt, 0u);
  }
}

TEST_F(Qcow2Hostile, CompressedClusterInTheHeaderIsNotGivenBack) {
  MakeWithEntry(kCompressed | 512);
  DiscardAll();
  EXPECT_TRUE(LooksLikeQcow2(file_.bytes));
}

TEST_F(Qcow2Hostile, RepairTakesOutRefcountBlocksThatAreNone) {
  const uint64_t bad[] = {uint64_t{1} << 40, 0, kCluster};
  for (const uint64_t block : bad) {
    Make(32 << 20);
    OrThrow(Open());
    ASSERT_EQ(Write(0, 9 << 20), 0);
    OrThrow(file_.Do(disk_->Close()));
    const size_t size = file_.bytes.size();
    // What counts the second 8 MiB of the file.
    const uint64_t first = disk_->state().refcounts.entries[0];
    StoreBe64(file_.bytes.data() + kCluster + 8, block == 0 ? first : block);
    (void)Checked(Repair::kAll);
    EXPECT_LE(file_.bytes.size(), size + 4 * kCluster);
    const CheckReport report = Checked(Repair::kAll);
    EXPECT_EQ(report.corruptions, report.corruptions_fixed) << block << ": " << report.messages[0];
  }
}

TEST_F(Qcow2Hostile, SnapshotThatHasATableTwiceDoesNotBecomeTheDisk) {
  Make(16 << 20);
  OrThrow(Open());
  ASSERT_EQ(Write(0, 4096), 0);
  OrThrow(file_.Do(CreateSnapshot(*disk_, "one", 1)));
  const auto table = OrThrow(file_.Do(ReadSnapshots(disk_->state())));
  std::byte* const l1 = file_.bytes.data() + table.snapshots[0].l1_offset;
  std::memcpy(l1 + 8, l1, 8);
  const auto applied = file_.Do(ApplySnapshot(*disk_, "one"));
  ASSERT_FALSE(applied.ok());
  EXPECT_EQ(applied.error().code, EINVAL);
}

// Not hostile, but as surprising: the image stays one that may be used.
TEST_F(Qcow2Hostile, SnapshotOnAFullDiskLeavesTheImageAsItWas) {
  Make(1 << 20);
  OrThrow(Open());
  ASSERT_EQ(Write(0, 1 << 20), 0);
  OrThrow(file_.Do(disk_->Close()));
  file_.max_bytes = file_.bytes.size();
  const auto made = file_.Do(CreateSnapshot(*disk_, "one", 1));
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ENOSPC);
  OrThrow(file_.Do(disk_->Close()));
  const CheckReport report = Checked(Repair::kNone);
  EXPECT_EQ(report.leaks + report.corruptions, 0u) << report.messages[0];
  OrThrow(Open());
  EXPECT_EQ(Write(0, 1 << 20), 0);
}

// It would wait for ever.
TEST(Qcow2TableCache, FullOfWhatCannotBeWrittenReadsNothing) {
  MemoryFile file;
  TableCache cache(file, 512, 0);
  uint64_t slices = 0;
  for (; !cache.TooDirty() || slices < 16; ++slices) {
    OrThrow(file.Do(cache.Load(slices * 512, TableKind::kL2)));
    cache.MarkDirty(*cache.Find(slices * 512));
  }
  cache.Written(cache.TakeDirty(), true);
  const auto loaded = file.Do(cache.Load(slices * 512, TableKind::kL2));
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, EIO);
  cache.Written(cache.TakeDirty(), false);
  OrThrow(file.Do(cache.Load(slices * 512, TableKind::kL2)));
}

}  // namespace
}  // namespace bulkhead::qcow2
