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

class Qcow2Work : public Qcow2Hostile {
 protected:
  static constexpr uint64_t kHugeFile = uint64_t{1} << 55;

  // The file has this first-level table for each of many snapshots; nothing but its header and its first tables takes
  // up space.
  void MakeWithSnapshots(uint32_t count, uint64_t l1_offset, uint32_t l1_entries) {
    Make(16 << 20);
    OrThrow(Open());
    ASSERT_EQ(Write(0, kCluster), 0);
    OrThrow(file_.Do(disk_->Close()));
    table_ = disk_->state().l1.entries[0] & kOffsetMask;
    const uint64_t at = RoundUp(file_.bytes.size(), kCluster);
    file_.bytes.resize(at + uint64_t{count} * 64);
    for (uint32_t i = 0; i < count; ++i) {
      std::byte* const snapshot = file_.bytes.data() + at + uint64_t{i} * 64;
      StoreBe64(snapshot, l1_offset);
      StoreBe32(snapshot + 8, l1_entries);
      StoreBe16(snapshot + 12, 8);
      StoreBe32(snapshot + 36, 16);
      StoreBe64(snapshot + 48, 16 << 20);
      std::memcpy(snapshot + 56, std::to_string(10'000'000 + i).data(), 8);
    }
    StoreBe32(file_.bytes.data() + 60, count);
    StoreBe64(file_.bytes.data() + 64, at);
  }
  void OpenHuge(Purpose purpose) {
    OpenOptions options;
    options.purpose = purpose;
    disk_ = std::make_unique<Qcow2Channel>(
        file_, device::BlockGeometry{.size_bytes = kHugeFile, .stored_bytes = file_.bytes.size()}, offload_, options);
    OrThrow(file_.Do(disk_->Open()));
    file_.reads = 0;
  }
  template <typename T>
  void ExpectTooMuch(const Result<T>& result) {
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, E2BIG) << result.error().message;
    EXPECT_LT(file_.reads, 100'000u);
    EXPECT_FALSE(disk_->state().corrupt);
  }

  uint64_t table_ = 0;
};

TEST_F(Qcow2Work, ATableThatManySnapshotsShareIsReadOnce) {
  constexpr uint32_t kSnapshots = 10'000;
  // Their first-level table is the active one.
  MakeWithSnapshots(kSnapshots, 0, 0);
  MakeWithSnapshots(kSnapshots, disk_->header().l1_offset, disk_->header().l1_entries);
  OrThrow(Open(Purpose::kCheck));
  file_.reads = 0;
  const CheckReport report = OrThrow(file_.Do(Check(*disk_, Repair::kNone)));
  EXPECT_NE(report.corruptions, 0u);
  // One for each first-level table, and few besides.
  EXPECT_LT(file_.reads, kSnapshots + 100);
  // All of them count.
  const CheckReport repaired = Checked(Repair::kAll);
  EXPECT_EQ(repaired.corruptions, repaired.corruptions_fixed);
  EXPECT_EQ(OrThrow(file_.Do(disk_->refcounts().Get(table_))), kSnapshots + 1);
}

TEST_F(Qcow2Work, FirstLevelTablesInHolesAreNotReadForEver) {
  MakeWithSnapshots(kMaxSnapshots, uint64_t{1} << 40, kMaxL1Bytes / 8);
  OpenHuge(Purpose::kCheck);
  ExpectTooMuch(file_.Do(Check(*disk_, Repair::kNone)));
  const auto before = file_.bytes;
  OpenHuge(Purpose::kCheck);
  ExpectTooMuch(file_.Do(Check(*disk_, Repair::kAll)));
  EXPECT_EQ(file_.bytes, before);
}

TEST_F(Qcow2Work, FileOfHolesIsNotCountedForEver) {
  Make(1 << 20);
  OrThrow(Open());
  ASSERT_EQ(Write(0, kCluster), 0);
  OrThrow(file_.Do(disk_->Close()));
  const uint64_t table = disk_->state().l1.entries[0] & kOffsetMask;
  StoreBe64(file_.bytes.data() + table, kHugeFile - kCluster);
  OpenHuge(Purpose::kCheck);
  ExpectTooMuch(file_.Do(Check(*disk_, Repair::kNone)));
}

TEST_F(Qcow2Work, SnapshotOfManyTablesIsNotDeletedNorApplied) {
  constexpr uint32_t kEntries = kMaxL1Bytes / 8;
  MakeWithSnapshots(1, 16 << 20, kEntries);
  // All of them name one table, which a snapshot may; only a disk may not.
  file_.bytes.resize((16 << 20) + kMaxL1Bytes);
  for (uint32_t i = 0; i < kEntries; ++i) StoreBe64(file_.bytes.data() + (16 << 20) + uint64_t{i} * 8, table_);
  const auto before = file_.bytes;
  OrThrow(Open());
  file_.reads = 0;
  ExpectTooMuch(file_.Do(DeleteSnapshot(*disk_, "10000000")));
  EXPECT_EQ(file_.bytes, before);
  // Each has one of its own, in a hole.
  for (uint32_t i = 0; i < kEntries; ++i) {
    StoreBe64(file_.bytes.data() + (16 << 20) + uint64_t{i} * 8, (uint64_t{1} << 40) + uint64_t{i} * kCluster);
  }
  const auto before_apply = file_.bytes;
  OpenHuge(Purpose::kUse);
  ExpectTooMuch(file_.Do(ApplySnapshot(*disk_, "10000000")));
  EXPECT_EQ(file_.bytes, before_apply);
}

TEST_F(Qcow2Work, MapOfOneTableAgainAndAgainEnds) {
  // Its extents are of one cluster each.
  Make(uint64_t{1} << 32);
  OrThrow(Open());
  ASSERT_EQ(Write(0, 2 << 20), 0);
  OrThrow(file_.Do(disk_->Close()));
  const uint64_t table = disk_->state().l1.entries[0] & kOffsetMask;
  for (uint64_t i = 0; i < kCluster / 8; ++i) {
    StoreBe64(file_.bytes.data() + table + i * 8, i % 2 == 0 ? 16 * kCluster : 0);
  }
  for (uint64_t i = 0; i < disk_->header().l1_entries; ++i) {
    StoreBe64(file_.bytes.data() + disk_->header().l1_offset + i * 8, table);
  }
  OpenOptions options;
  disk_ = std::make_unique<Qcow2Channel>(
      file_, device::BlockGeometry{.size_bytes = file_.bytes.size(), .read_only = true}, offload_, options);
  OrThrow(file_.Do(disk_->Open()));
  // What a disk of so many tables may take, nearly.
  OrThrow(disk_->state().work.Spend((uint64_t{1} << 27) - 100'000));
  uint64_t offset = 0;
  Result<device::BlockExtent> extent = device::BlockExtent{};
  while (extent.ok() && offset < disk_->header().size_bytes) {
    extent = file_.Do(disk_->Map(offset, disk_->header().size_bytes - offset));
    if (extent.ok()) offset += extent->size_bytes;
  }
  ASSERT_FALSE(extent.ok());
  EXPECT_EQ(extent.error().code, E2BIG);
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
