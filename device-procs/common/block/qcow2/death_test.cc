// SPDX-License-Identifier: Apache-2.0
// A qcow2 disk whose process is killed at any request to its file: the next one, which has the file and the store that
// it left, reads all that was complete, and goes on with tables that agree.
#include "device-procs/common/block/qcow2/qcow2_fixture.h"

namespace bulkhead::qcow2::test {
namespace {

// A journal's room for tables, as a process leaves it.
Buffer NewTables() {
  Buffer tables(kJournalTablesBytes);
  std::memset(tables.data(), 0, tables.size());
  return tables;
}
Buffer CopyOf(const Buffer& tables) {
  Buffer copy(tables.size());
  std::memcpy(copy.data(), tables.data(), tables.size());
  return copy;
}

struct Flying {
  std::unique_ptr<Request> request;
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
  std::byte value{};
};

// One process after the other on what the first left.
class Successor {
 public:
  Successor(std::vector<std::byte> file, Buffer tables, uint32_t log_entries, const std::vector<std::byte>& base)
      : tables_(std::move(tables)), log_entries_(log_entries), store_(tables_.span(), log_entries) {
    file_.bytes = std::move(file);
    base_.bytes = base;
    OpenOptions options;
    if (!base.empty()) options.backing = {&base_, base.size()};
    options.log = [](const std::string& line) { ADD_FAILURE() << line; };
    options.store = &store_;
    disk_ = std::make_unique<Qcow2Channel>(file_, device::BlockGeometry{.size_bytes = file_.bytes.size()}, offload_,
                                           options);
    OrThrow(file_.Do(disk_->Open()));
  }

  Qcow2Channel& disk() { return *disk_; }
  MemoryFile& file() { return file_; }
  MemoryFile& base() { return base_; }
  void Pump() {
    while (file_.Step() || base_.Step()) {
    }
  }
  std::vector<std::byte> ReadAll() {
    Request read;
    read.bytes.resize(disk_->header().size_bytes);
    read.vector = {read.bytes.data(), read.bytes.size()};
    disk_->Read(0, {&read.vector, 1}, read);
    Pump();
    EXPECT_TRUE(read.ended);
    EXPECT_EQ(read.error, 0);
    return std::move(read.bytes);
  }
  void Write(uint64_t offset, std::span<const std::byte> bytes) {
    Request write;
    write.vector = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    disk_->Write(offset, {&write.vector, 1}, write);
    Pump();
    EXPECT_TRUE(write.ended);
    EXPECT_EQ(write.error, 0);
  }
  // Killed as well, after some of its own requests.
  std::unique_ptr<Successor> Die(std::mt19937_64& random) {
    return std::make_unique<Successor>(file_.AfterDeath(random), CopyOf(tables_), log_entries_, base_.bytes);
  }

 private:
  const Buffer tables_;
  const uint32_t log_entries_;
  TableStore store_;
  MemoryFile file_;
  MemoryFile base_;
  LateOffload offload_{file_};
  std::unique_ptr<Qcow2Channel> disk_;
};

class Qcow2Death : public Qcow2Disk {
 protected:
  // The disk goes on with a store.
  void Begin(uint32_t log_entries) {
    OrThrow(file_.Do(disk_->Close()));
    log_entries_ = log_entries;
    first_store_.emplace(tables_.span(), log_entries);
    store_ = &*first_store_;
    Open();
  }
  void StartOne() {
    const uint64_t cluster = disk_->state().cluster_bytes();
    const uint64_t kind = random_() % 12;
    const bool discard = kind == 0 && !GetParam().backing;
    uint64_t offset = random_() % (kDiskBytes / 512) * 512;
    uint64_t size = std::min((1 + random_() % (random_() % 3 == 0 ? 400 : 16)) * 512, kDiskBytes - offset);
    if (discard) {
      offset = offset / cluster * cluster;
      size = std::min(RoundUp(size, cluster), kDiskBytes - offset);
    }
    const bool free = std::none_of(flying_.begin(), flying_.end(), [&](const Flying& other) {
      return offset < other.offset + other.size_bytes && other.offset < offset + size;
    });
    if (!free) return;
    Flying flying{.request = std::make_unique<Request>(), .offset = offset, .size_bytes = size};
    Request& request = *flying.request;
    if (discard) {
      disk_->Discard(offset, size, request);
    } else if (kind < 3) {
      disk_->WriteZeroes(offset, size, kind == 1, request);
    } else if (kind == 3) {
      flying.size_bytes = 0;
      disk_->Flush(request);
    } else {
      flying.value = static_cast<std::byte>(random_());
      flying.request = Start(true, offset, size, flying.value);
    }
    flying_.push_back(std::move(flying));
  }
  // The model has what is complete.
  void Harvest() {
    std::erase_if(flying_, [&](const Flying& flying) {
      if (!flying.request->ended) return false;
      EXPECT_EQ(flying.request->error, 0);
      std::fill_n(model_.begin() + static_cast<ptrdiff_t>(flying.offset), flying.size_bytes, flying.value);
      return true;
    });
  }
  // What is under way may be there or not.
  void ExpectAllowed(const std::vector<std::byte>& content) {
    std::vector<std::byte> other = model_;
    for (const Flying& flying : flying_) {
      std::fill_n(other.begin() + static_cast<ptrdiff_t>(flying.offset), flying.size_bytes, flying.value);
    }
    for (uint64_t i = 0; i < kDiskBytes; ++i) {
      ASSERT_TRUE(content[i] == model_[i] || content[i] == other[i]) << "byte " << i << " is not what was written";
    }
  }
  void Die() {
    auto next = std::make_unique<Successor>(file_.AfterDeath(random_), CopyOf(tables_), log_entries_, base_.bytes);
    std::unique_ptr<Successor> before;
    if (random_() % 3 == 0) {
      Request flush;
      next->disk().Flush(flush);
      for (uint64_t steps = random_() % 8; steps != 0; --steps) next->file().Step(&random_);
      before = std::exchange(next, next->Die(random_));
      before->Pump();
      ASSERT_TRUE(flush.ended);
    }
    std::vector<std::byte> content = next->ReadAll();
    ExpectAllowed(content);
    if (HasFatalFailure()) return;
    // As what was under way is asked for again.
    const std::vector<std::byte> more(2048, std::byte{0xA5});
    for (int i = 0; i < 12; ++i) {
      const uint64_t offset = random_() % ((kDiskBytes - more.size()) / 512) * 512;
      next->Write(offset, more);
      std::copy(more.begin(), more.end(), content.begin() + static_cast<ptrdiff_t>(offset));
    }
    OrThrow(next->file().Do(next->disk().Close()));
    std::vector<std::byte> kept;
    ReadAfterPowerCut(next->file().bytes, next->base(), kept);
    if (HasFatalFailure()) return;
    ASSERT_EQ(kept, content);
  }
  void DieAgainAndAgain(uint32_t log_entries) {
    constexpr int kRequests = 200;
    constexpr uint64_t kBetween = 20;
    Begin(log_entries);
    uint64_t until_death = 1;
    for (int i = 0; i < kRequests && !HasFatalFailure(); ++i) {
      StartOne();
      for (uint64_t steps = random_() % 5; steps != 0; --steps) {
        if (!file_.Step(&random_)) base_.Step(&random_);
        Harvest();
        if (--until_death != 0) continue;
        until_death = 1 + random_() % (2 * kBetween);
        Die();
        if (HasFatalFailure()) return;
      }
    }
    Pump();
    Harvest();
    ASSERT_TRUE(flying_.empty());
    Die();
    OrThrow(file_.Do(disk_->Close()));
    ExpectClean();
  }

  Buffer tables_ = NewTables();
  uint32_t log_entries_ = 0;
  std::optional<TableStore> first_store_;
  std::vector<Flying> flying_;
};

TEST_P(Qcow2Death, AtAnyRequestCostsNothingThatWasComplete) { DieAgainAndAgain(TableStore::kLogEntries); }

TEST_P(Qcow2Death, CostsNothingEitherWhereTheLogIsAlwaysFull) { DieAgainAndAgain(1); }

TEST_P(Qcow2Death, ASuccessorOfOneThatClosedFindsNothingToTakeOver) {
  Begin(TableStore::kLogEntries);
  RandomBatch();
  OrThrow(file_.Do(disk_->Close()));
  TableStore store(tables_.span());
  const uint64_t slice_bytes = disk_->state().cache->slice_bytes();
  const auto legacy = store.Open(slice_bytes, TableStore::kSlicesBytes / slice_bytes);
  ASSERT_TRUE(legacy.ok()) << legacy.error().message;
  EXPECT_TRUE(legacy->slots.empty() && legacy->changes.empty());
}

INSTANTIATE_TEST_SUITE_P(Variants, Qcow2Death, testing::ValuesIn(kVariants),
                         [](const auto& info) { return info.param.name; });

// Its predecessor belonged to somebody.
class HostileTables : public testing::Test {
 protected:
  static constexpr uint64_t kCluster = 4096;
  static constexpr uint64_t kSlots = 64;  // as many as so small a disk has

  void Make(uint64_t disk_bytes) {
    NewImage image;
    image.size_bytes = disk_bytes;
    image.layout.cluster_bits = 12;
    OrThrow(file_.Do(CreateImage(file_, image)));
    OrThrow(Open());
  }
  void SetUp() override {
    Make(8 << 20);
    Write(0);
    Write(4 << 20);
    disk_.reset();
  }
  Result<void> Open() {
    OpenOptions options;
    store_.emplace(tables_.span());
    options.store = &*store_;
    disk_ = std::make_unique<Qcow2Channel>(file_, device::BlockGeometry{.size_bytes = file_.bytes.size()}, offload_,
                                           options);
    return file_.Do(disk_->Open());
  }
  void Write(uint64_t offset) {
    Request request;
    request.bytes.assign(kCluster, std::byte{0x5A});
    request.vector = {request.bytes.data(), kCluster};
    disk_->Write(offset, {&request.vector, 1}, request);
    file_.Drain();
    ASSERT_EQ(request.error, 0);
  }
  // The predecessor's own hand, which may do anything.
  TableStore Hand() {
    TableStore hand(tables_.span());
    OrThrow(hand.Open(kCluster, kSlots));
    return hand;
  }
  void ExpectRefused() {
    const auto before = file_.bytes;
    EXPECT_FALSE(Open().ok());
    file_.Drain();
    EXPECT_EQ(file_.bytes, before);
  }
  // The slice is no table's: nothing of it gets into the file.
  void ExpectIgnored(const TableStore::Slot& slot) {
    TableStore hand = Hand();
    std::memset(hand.Bytes(slot.number).data(), 0xEE, kCluster);
    hand.MarkChanged(slot);
    const std::vector<std::byte> before(file_.bytes.begin() + static_cast<ptrdiff_t>(slot.offset),
                                        file_.bytes.begin() + static_cast<ptrdiff_t>(slot.offset + kCluster));
    OrThrow(Open());
    OrThrow(file_.Do(disk_->Close()));
    EXPECT_TRUE(std::equal(before.begin(), before.end(), file_.bytes.begin() + static_cast<ptrdiff_t>(slot.offset)));
    OpenOptions options;
    options.purpose = Purpose::kCheck;
    Qcow2Channel checked(file_, device::BlockGeometry{.size_bytes = file_.bytes.size()}, offload_, options);
    OrThrow(file_.Do(checked.Open()));
    const auto report = OrThrow(file_.Do(Check(checked, Repair::kNone)));
    EXPECT_EQ(report.corruptions + report.leaks, 0u);
  }

  MemoryFile file_;
  device::InlineOffload offload_;
  Buffer tables_ = NewTables();
  std::optional<TableStore> store_;
  std::unique_ptr<Qcow2Channel> disk_;
};

TEST_F(HostileTables, AsTheyWereLeftTheyAreTakenOver) {
  const auto legacy = Hand().Open(kCluster, kSlots);
  ASSERT_TRUE(legacy.ok());
  EXPECT_FALSE(legacy->slots.empty());
  EXPECT_EQ(legacy->changes.size(), 2u) << "a table for each end of the disk";
  OrThrow(Open());
  EXPECT_TRUE(disk_->checkpointer().dirty());
  OrThrow(file_.Do(disk_->Close()));
}

TEST_F(HostileTables, OfAnotherFormAreRefused) {
  StoreBe64(tables_.data(), ~uint64_t{0});
  ExpectRefused();
}

TEST_F(HostileTables, ALogLongerThanItCanBeIsRefused) {
  TableStore hand = Hand();
  for (uint32_t i = 0; i <= TableStore::kLogEntries; ++i) hand.Note({.index = 0, .entry = 0});
  ExpectRefused();
}

TEST_F(HostileTables, AnEntryPastTheEndOfItsTableIsRefused) {
  Hand().Note({.index = uint64_t{1} << 40, .entry = 0});
  ExpectRefused();
}

TEST_F(HostileTables, AnEntryOfTheRefcountTablePastItsEndIsRefused) {
  Hand().Note({.table = TableStore::Table::kRefcounts, .index = kCluster / 8, .entry = 0});
  ExpectRefused();
}

TEST_F(HostileTables, AnEntryWithReservedBitsIsRefused) {
  Hand().Note({.index = 1, .entry = kCopied | 1 | kCluster});
  ExpectRefused();
}

TEST_F(HostileTables, AnEntryThatNamesAPartOfAClusterIsRefused) {
  Hand().Note({.index = 1, .entry = kCopied | (kCluster + 512)});
  ExpectRefused();
}

TEST_F(HostileTables, ATablePastTheEndOfTheFileIsRefused) {
  Hand().Note({.index = 1, .entry = kCopied | uint64_t{1} << 40});
  ExpectRefused();
}

TEST_F(HostileTables, ATableThatIsAnotherAlreadyIsRefused) {
  Hand().Note({.index = 1, .entry = kCopied | kCluster});
  ExpectRefused();
}

TEST_F(HostileTables, ASliceThatBeginsWithinAnotherIsRefused) {
  Hand().MarkChanged({.number = 40, .offset = kCluster + 512, .kind = TableKind::kRefcount});
  ExpectRefused();
}

TEST_F(HostileTables, TwoSlicesOfOnePlaceAreRefused) {
  TableStore hand = Hand();
  hand.MarkChanged({.number = 40, .offset = 2 * kCluster, .kind = TableKind::kRefcount});
  hand.MarkChanged({.number = 41, .offset = 2 * kCluster, .kind = TableKind::kL2});
  ExpectRefused();
}

TEST_F(HostileTables, ASliceOverTheHeaderIsIgnored) { ExpectIgnored({.number = 40, .offset = 0}); }

TEST_F(HostileTables, ASliceOverTheRefcountTableIsIgnored) {
  ExpectIgnored({.number = 40, .offset = kCluster, .kind = TableKind::kRefcount});
}

TEST_F(HostileTables, ASliceOverDataIsIgnored) {
  OrThrow(Open());
  Extent extent;
  ASSERT_TRUE(disk_->mapping().FindNow(0, kCluster, extent));
  disk_.reset();
  ExpectIgnored({.number = 40, .offset = extent.file_offset});
}

// As a predecessor leaves them that died in a checkpoint, while as much was changed again.
TEST_F(HostileTables, WhereAllSlicesAreChangedOthersAreReadAllTheSame) {
  constexpr uint64_t kReach = kCluster / 8 * kCluster;
  constexpr uint32_t kAllSlots = TableStore::kSlicesBytes / kCluster;
  constexpr uint64_t kTables = kAllSlots + 20;
  tables_ = NewTables();
  file_.bytes.clear();
  Make(kTables * kReach);
  for (uint64_t table = 0; table < kTables; ++table) Write(table * kReach);
  OrThrow(file_.Do(disk_->Close()));
  const std::vector<uint64_t> l1 = disk_->state().l1.entries;
  disk_.reset();
  TableStore hand(tables_.span());
  OrThrow(hand.Open(kCluster, kAllSlots));
  for (uint32_t slot = 0; slot < kAllSlots; ++slot) {
    const uint64_t offset = l1[slot] & kOffsetMask;
    std::memcpy(hand.Bytes(slot).data(), file_.bytes.data() + offset, kCluster);
    hand.MarkChanged({.number = slot, .offset = offset});
  }
  OrThrow(Open());
  Write((kTables - 1) * kReach + kCluster);
  OrThrow(file_.Do(disk_->Close()));
}

TEST_F(HostileTables, SlicesOfAllKindsThatAreFullOfAnythingEndInErrors) {
  TableStore hand = Hand();
  for (uint32_t slot = 0; slot < kSlots; ++slot) std::memset(hand.Bytes(slot).data(), 0xEE, kCluster);
  OrThrow(Open());
  Request request;
  request.bytes.resize(kCluster);
  request.vector = {request.bytes.data(), kCluster};
  disk_->Read(0, {&request.vector, 1}, request);
  file_.Drain();
  EXPECT_EQ(request.error, EIO);
  (void)file_.Do(disk_->Close()).ok();
}

}  // namespace
}  // namespace bulkhead::qcow2::test
