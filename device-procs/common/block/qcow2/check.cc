// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/check.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "device-procs/common/block/qcow2/snapshots.h"
#include "device-procs/common/block/qcow2/table_walk.h"

namespace bulkhead::qcow2 {
namespace {

using device::Task;

// Clusters that are counted in one walk through all tables: 32 MiB of counts, 512 GiB of the usual clusters.
constexpr uint64_t kWindow = uint64_t{8} << 20;
constexpr size_t kMaxMessages = 100;
// References of snapshots that are gathered, so that a table that many of them share is read once: 8 MiB.
constexpr size_t kMaxNamed = size_t{1} << 20;

class Checker {
 public:
  Checker(Qcow2Channel& image, Repair repair) : image_(image), state_(image.state()), repair_(repair) {}

  Task<Result<CheckReport>> Run() {
    Result<SnapshotTable> snapshots = co_await ReadSnapshots(state_);
    if (snapshots.ok()) {
      snapshots_ = std::move(*snapshots);
    } else {
      Corruption(snapshots.error().message);
    }
    if (repair_ == Repair::kAll) TakeOutBadBlocks();
    report_.total_clusters = DivideUp(state_.header.size_bytes, state_.cluster_bytes());
    const uint64_t clusters = DivideUp(state_.file_end, state_.cluster_bytes());
    for (first_ = 0; first_ < End(); first_ += kWindow) {
      Result<void> counted = state_.work.StartWalk(DivideUp(End(), kWindow));
      if (!counted.ok()) co_return counted.error();
      counts_.assign(std::min(kWindow, clusters - first_), 0);
      counted = co_await CountEverything();
      if (counted.ok()) counted = co_await Compare();
      if (!counted.ok()) co_return counted.error();
      first_pass_ = false;
    }
    if (repair_ != Repair::kNone) {
      Result<void> finished = co_await Finish();
      if (!finished.ok()) co_return finished.error();
    }
    co_return std::move(report_);
  }

 private:
  // What is no refcount block of its own must not be written as one.
  void TakeOutBadBlocks() {
    const uint32_t bits = state_.layout().cluster_bits;
    // Sorted: tables are large enough that sets of what they name would not fit into the process.
    std::vector<uint64_t> taken{0};
    const auto take = [&](uint64_t offset, uint64_t size_bytes) {
      for (uint64_t at = 0; at < size_bytes; at += state_.cluster_bytes()) taken.push_back((offset + at) >> bits);
    };
    take(state_.header.l1_offset, uint64_t{state_.header.l1_entries} * sizeof(uint64_t));
    take(state_.header.refcount_table_offset, state_.header.refcount_table_bytes());
    taken.reserve(taken.size() + state_.l1.entries.size());
    for (const uint64_t entry : state_.l1.entries) taken.push_back((entry & kOffsetMask) >> bits);
    std::sort(taken.begin(), taken.end());

    const std::vector<uint64_t>& entries = state_.refcounts.entries;
    std::vector<size_t> blocks;
    blocks.reserve(entries.size());
    for (size_t block = 0; block < entries.size(); ++block) {
      if (entries[block] != 0) blocks.push_back(block);
    }
    // Of those with the same place the first may stay.
    std::stable_sort(blocks.begin(), blocks.end(), [&](size_t a, size_t b) { return entries[a] < entries[b]; });
    const uint64_t end = DivideUp(state_.file_end, state_.cluster_bytes());
    uint64_t last = 0;
    for (const size_t block : blocks) {
      const uint64_t offset = entries[block];
      const uint64_t cluster = offset >> bits;
      const bool first = std::exchange(last, cluster) != cluster;
      if (first && cluster < end && !std::binary_search(taken.begin(), taken.end(), cluster)) continue;
      Corruption("the refcount block at byte " + std::to_string(offset) + " cannot be there");
      state_.refcounts.Set(block, 0);
      ++report_.corruptions_fixed;
    }
  }

  void Say(const std::string& message) {
    if (report_.messages.size() < kMaxMessages) report_.messages.push_back(message);
  }
  void Corruption(const std::string& message) {
    if (!first_pass_) return;
    ++report_.corruptions;
    Say("ERROR: " + message);
  }

  // After the last cluster of the file that a refcount block counts, or that the first walk found named.
  uint64_t End() const {
    uint64_t blocks = state_.refcounts.entries.size();
    while (blocks != 0 && state_.refcounts.entries[blocks - 1] == 0) --blocks;
    const uint64_t counted = blocks * state_.layout().block_entries();
    return std::min(DivideUp(state_.file_end, state_.cluster_bytes()), std::max(counted, named_end_));
  }

  // References to each cluster of a range; the first walk says which lie past the end.
  void Count(uint64_t offset, uint64_t clusters, const char* what, uint64_t times = 1) {
    const uint64_t first = offset >> state_.layout().cluster_bits;
    const uint64_t end = DivideUp(state_.file_end, state_.cluster_bytes());
    if (first >= end || clusters > end - first) {
      Corruption(std::string(what) + " at byte " + std::to_string(offset) + " lies past the end of the file");
    }
    named_end_ = std::max(named_end_, first + clusters);
    for (uint64_t cluster = std::max(first, first_); cluster < first + clusters; ++cluster) {
      if (cluster - first_ >= counts_.size()) return;
      uint32_t& count = counts_[cluster - first_];
      count += static_cast<uint32_t>(std::min<uint64_t>(times, UINT32_MAX - count));
    }
  }
  void CountBytes(uint64_t offset, uint64_t size_bytes, const char* what) {
    if (size_bytes != 0) Count(offset, DivideUp(size_bytes, state_.cluster_bytes()), what);
  }

  Task<Result<void>> CountEverything() {
    const Header& header = state_.header;
    uint64_t of_snapshots = 0;
    for (const Snapshot& snapshot : snapshots_.snapshots) of_snapshots += snapshot.l1_entries;
    if (Result<void> checked = state_.work.Affords(of_snapshots); !checked.ok()) co_return checked;
    Count(0, 1, "the header");
    CountBytes(header.refcount_table_offset, header.refcount_table_bytes(), "the refcount table");
    for (const uint64_t entry : state_.refcounts.entries) {
      if (entry != 0) Count(entry & kOffsetMask, 1, "a refcount block");
    }
    CountBytes(header.snapshots_offset, snapshots_.size_bytes, "the table of snapshots");
    CountBytes(header.l1_offset, uint64_t{header.l1_entries} * sizeof(uint64_t), "the first-level table");
    Result<void> counted = co_await CountActive();
    if (!counted.ok()) co_return counted;
    for (const Snapshot& snapshot : snapshots_.snapshots) {
      CountBytes(snapshot.l1_offset, uint64_t{snapshot.l1_entries} * sizeof(uint64_t), "a snapshot's table");
      Result<std::vector<uint64_t>> l1 = co_await ReadEntries(state_, snapshot.l1_offset, snapshot.l1_entries);
      if (state_.work.exceeded()) co_return l1.error();
      if (!l1.ok()) {
        Corruption(l1.error().message);
        continue;
      }
      counted = co_await Name(std::move(*l1));
      if (!counted.ok()) co_return counted;
    }
    counted = co_await CountNamed();
    co_return counted;
  }

  Task<Result<void>> CountActive() {
    for (uint64_t i = 0; i < state_.l1.entries.size(); ++i) {
      const uint64_t table = state_.l1.entries[i] & kOffsetMask;
      if (table == 0) continue;
      Result<void> counted = co_await CountTable(table, 1, true);
      if (counted.ok() && first_pass_) {
        counted = co_await CheckFlag(table, (state_.l1.entries[i] & kCopied) != 0, "second-level table");
      }
      if (!counted.ok()) co_return counted;
    }
    co_return Result<void>();
  }

  Task<Result<void>> Name(std::vector<uint64_t> l1) {
    for (const uint64_t entry : l1) {
      if ((entry & kOffsetMask) != 0) named_.push_back(entry & kOffsetMask);
      if (named_.size() < kMaxNamed) continue;
      Result<void> counted = co_await CountNamed();
      if (!counted.ok()) co_return counted;
    }
    co_return Result<void>();
  }

  // What was gathered; where it comes in parts, so do the counts.
  Task<Result<void>> CountNamed() {
    std::sort(named_.begin(), named_.end());
    for (auto first = named_.begin(); first != named_.end();) {
      const auto next = std::upper_bound(first, named_.end(), *first);
      Result<void> counted = co_await CountTable(*first, static_cast<uint64_t>(next - first), false);
      if (!counted.ok()) co_return counted;
      first = next;
    }
    named_.clear();
    co_return Result<void>();
  }

  // A second-level table that is named so many times, and what it refers to.
  Task<Result<void>> CountTable(uint64_t table, uint64_t times, bool active) {
    Count(table, 1, "a second-level table", times);
    Result<std::vector<uint64_t>> entries = co_await ReadEntries(state_, table, state_.layout().l2_entries());
    if (state_.work.exceeded()) co_return entries.error();
    if (!entries.ok()) {
      Corruption(entries.error().message);
      co_return Result<void>();
    }
    for (const uint64_t entry : *entries) {
      const bool compressed = (entry & kCompressed) != 0;
      if (!compressed && ((entry & kL2Reserved) != 0 || (entry & kOffsetMask & state_.layout().cluster_mask()) != 0)) {
        Corruption("the table entry " + std::to_string(entry) + " cannot be");
        continue;
      }
      const ClusterRange range = RangeOf(entry, state_.layout());
      if (range.clusters == 0) continue;
      Count(range.offset, range.clusters, "data", times);
      if (!active || !first_pass_) continue;
      Statistics(range.offset, compressed);
      if (compressed) continue;
      Result<void> checked = co_await CheckFlag(range.offset, (entry & kCopied) != 0, "data cluster");
      if (!checked.ok()) co_return checked;
    }
    co_return Result<void>();
  }

  void Statistics(uint64_t offset, bool compressed) {
    ++report_.allocated_clusters;
    if (compressed) {
      ++report_.compressed_clusters;
      ++report_.fragmented_clusters;
    } else {
      if (next_offset_ != 0 && offset != next_offset_) ++report_.fragmented_clusters;
      next_offset_ = offset + state_.cluster_bytes();
    }
  }

  Task<Result<void>> CheckFlag(uint64_t offset, bool copied, const char* what) {
    Result<uint64_t> count = co_await image_.refcounts().Get(offset);
    if (!count.ok()) co_return count.error();
    if ((*count == 1) == copied) co_return Result<void>();
    Corruption(std::string("the copied flag of the ") + what + " at byte " + std::to_string(offset) +
               " does not fit its refcount of " + std::to_string(*count));
    ++wrong_flags_;
    co_return Result<void>();
  }

  Task<Result<void>> Compare() {
    for (uint64_t i = 0; i < counts_.size(); ++i) {
      const uint64_t offset = (first_ + i) << state_.layout().cluster_bits;
      Result<uint64_t> count = co_await image_.refcounts().Get(offset);
      if (!count.ok()) co_return count.error();
      if (*count != 0 || counts_[i] != 0) report_.image_end = offset + state_.cluster_bytes();
      if (*count == counts_[i]) continue;
      const bool leak = *count > counts_[i];
      ++(leak ? report_.leaks : report_.corruptions);
      Say((leak ? "Leaked cluster " : "ERROR: cluster ") + std::to_string(first_ + i) +
          " refcount=" + std::to_string(*count) + " reference=" + std::to_string(counts_[i]));
      Result<void> repaired = co_await RepairCount(i, leak);
      if (!repaired.ok()) co_return repaired;
    }
    co_return Result<void>();
  }

  Task<Result<void>> RepairCount(uint64_t index, bool leak) {
    if (repair_ == Repair::kNone || (repair_ == Repair::kLeaks && !leak)) co_return Result<void>();
    const uint64_t cluster = first_ + index;
    const uint64_t offset = cluster << state_.layout().cluster_bits;
    std::optional<uint64_t> new_block;
    if (!image_.refcounts().HasBlock(offset)) {
      // The first cluster that a new block counts becomes that block. A table that is too short would move over
      // clusters that may be in use.
      const uint64_t block_at = cluster & ~(state_.layout().block_entries() - 1);
      const bool known = cluster >> state_.layout().block_bits() < state_.refcounts.entries.size();
      const bool free = known && block_at >= first_ && counts_[block_at - first_] == 0;
      if (!free) co_return Result<void>();
      new_block = block_at - first_;
    }
    if (counts_[index] > state_.layout().max_refcount()) co_return Result<void>();
    Result<void> set = co_await image_.refcounts().Set(offset, counts_[index]);
    if (!set.ok()) co_return set;
    if (new_block) counts_[*new_block] = 1;
    ++(leak ? report_.leaks_fixed : report_.corruptions_fixed);
    co_return Result<void>();
  }

  Task<Result<void>> Finish() {
    Result<void> done;
    // Flags that fitted a count may not fit what it became. One may be set only where every count is known to be right.
    const bool changed = wrong_flags_ + report_.leaks_fixed + report_.corruptions_fixed != 0;
    if (changed && (repair_ == Repair::kAll || report_.corruptions == 0)) {
      done = co_await UpdateCopied(image_);
      if (done.ok()) report_.corruptions_fixed += wrong_flags_;
    }
    if (done.ok()) done = co_await image_.checkpointer().Settle();
    const bool clean = report_.corruptions == report_.corruptions_fixed;
    const uint64_t marks = kCorrupt | kDirty;
    if (done.ok() && clean && repair_ == Repair::kAll && (state_.header.incompatible & marks) != 0) {
      state_.header.incompatible &= ~marks;
      done = co_await WriteHeaderSector(state_);
    }
    co_return done;
  }

  Qcow2Channel& image_;
  ImageState& state_;
  const Repair repair_;
  SnapshotTable snapshots_;
  CheckReport report_;
  uint64_t first_ = 0;  // cluster of the window
  bool first_pass_ = true;
  uint64_t named_end_ = 1;  // after the last cluster that anything refers to, the header at least
  std::vector<uint64_t> named_;
  std::vector<uint32_t> counts_;
  uint64_t next_offset_ = 0;
  uint64_t wrong_flags_ = 0;
};

}  // namespace

Task<Result<CheckReport>> Check(Qcow2Channel& image, Repair repair) {
  Checker checker(image, repair);
  Result<CheckReport> report = co_await checker.Run();
  co_return report;
}

}  // namespace bulkhead::qcow2
