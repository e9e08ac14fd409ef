// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/refcounts.h"

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {

using device::Task;

Task<Result<void>> ZeroClusters(ImageState& state, uint64_t offset, uint64_t clusters, bool fresh) {
  const uint64_t size_bytes = clusters * state.cluster_bytes();
  int error = 0;
  if (!fresh) error = co_await device::WriteZeroesTo(state.file, offset, size_bytes, false);
  // A hole at the end would leave the file too short for a table.
  Buffer last(kSectorBytes);
  std::memset(last.data(), 0, kSectorBytes);
  if (error == 0) {
    error = co_await device::WriteTo(state.file, offset + size_bytes - kSectorBytes, last.data(), kSectorBytes);
  }
  if (error != 0) co_return ErrnoError(error, "clearing a table");
  state.UseUpTo(offset + size_bytes);
  co_return Result<void>();
}

Result<void> Refcounts::CheckPlace(uint64_t cluster, uint64_t count) {
  if (state_.tables.Overlaps(cluster, count)) {
    return state_.Corrupt("cluster " + std::to_string(cluster) + " holds a table and counts as free");
  }
  if (cluster + count > kMaxFileBytes >> state_.layout().cluster_bits) {
    return Error{EFBIG, "the image has no room for more clusters"};
  }
  return {};
}

Task<Result<Slice*>> Refcounts::SliceOf(uint64_t cluster, Access access) {
  const uint64_t block = cluster >> state_.layout().block_bits();
  for (;;) {
    if (state_.corrupt) co_return Error{EIO, "the image is corrupt"};
    if (block >= state_.refcounts.entries.size() || state_.refcounts.entries[block] == 0) {
      if (access != Access::kMake) co_return static_cast<Slice*>(nullptr);
      Result<void> added = co_await AddBlock(block);
      if (!added.ok()) co_return added.error();
      continue;
    }
    const uint64_t index = cluster & (state_.layout().block_entries() - 1);
    const uint64_t offset = state_.refcounts.entries[block] + index / slice_entries() * state_.cache->slice_bytes();
    Slice* slice = state_.cache->Find(offset);
    if (slice != nullptr && slice->kind != TableKind::kRefcount) {
      co_return state_.Corrupt("a refcount block is a second-level table as well");
    }
    const bool room = slice != nullptr && (slice->dirty || access == Access::kLook || !state_.cache->TooDirty());
    if (room) co_return slice;
    Result<void> done;
    if (slice == nullptr) {
      done = co_await state_.cache->Load(offset, TableKind::kRefcount);
    } else {
      done = co_await checkpointer_.Run();
    }
    if (!done.ok()) co_return done.error();
  }
}

bool Refcounts::FindFree(const Slice& slice, uint64_t& cluster, uint64_t wanted, uint64_t& found) const {
  const uint32_t order = state_.layout().refcount_order;
  const uint64_t entries = slice_entries();
  uint64_t index = IndexInSlice(cluster);
  while (index < entries && LoadRefcount(slice.bytes.data(), index, order) != 0) ++index, ++cluster;
  found = 0;
  while (index + found < entries && found < wanted && LoadRefcount(slice.bytes.data(), index + found, order) == 0) {
    ++found;
  }
  return found != 0;
}

Task<Result<Allocation>> Refcounts::Allocate(uint64_t wanted) {
  uint64_t cluster = first_free_;
  for (;;) {
    Result<Slice*> slice = co_await SliceOf(cluster, Access::kMake);
    if (!slice.ok()) co_return slice.error();
    const bool from_first = cluster <= first_free_;
    uint64_t found = 0;
    const bool is_free = FindFree(**slice, cluster, wanted, found);
    if (!is_free) {
      // All of this slice is in use; `cluster` is the next one's first.
      if (from_first) first_free_ = std::max(first_free_, cluster);
      continue;
    }
    if (auto checked = CheckPlace(cluster, found); !checked.ok()) co_return checked.error();
    for (uint64_t i = 0; i < found; ++i) {
      StoreRefcount((*slice)->bytes.data(), IndexInSlice(cluster) + i, state_.layout().refcount_order, 1);
    }
    state_.cache->MarkDirty(**slice);
    if (from_first) first_free_ = std::max(first_free_, cluster + found);
    const uint64_t offset = cluster << state_.layout().cluster_bits;
    const Allocation allocation{.offset = offset, .clusters = found, .fresh = state_.IsFresh(offset)};
    state_.UseUpTo(offset + found * state_.cluster_bytes());
    co_return allocation;
  }
}

Task<Result<Allocation>> Refcounts::AllocateExactly(uint64_t clusters) {
  // Pieces of it are taken until they lie side by side; the others go back at once, as nothing names them.
  std::vector<Freed> others;
  Allocation run;
  Result<void> taken;
  while (taken.ok() && run.clusters < clusters) {
    Result<Allocation> piece = co_await Allocate(clusters - run.clusters);
    if (!piece.ok()) {
      taken = piece.error();
    } else if (run.clusters != 0 && piece->offset == run.offset + run.clusters * state_.cluster_bytes()) {
      run.clusters += piece->clusters;
      run.fresh = run.fresh && piece->fresh;
    } else {
      if (run.clusters != 0) others.push_back({run.offset, run.clusters});
      run = *piece;
    }
  }
  if (!taken.ok() && run.clusters != 0) others.push_back({run.offset, run.clusters});
  for (const Freed& other : others) {
    Result<void> given = co_await Decrement(other.offset, other.clusters);
    if (!given.ok() && taken.ok()) taken = given;
  }
  if (!taken.ok()) co_return taken.error();
  state_.cache->Drop(run.offset, run.clusters * state_.cluster_bytes());
  co_return run;
}

Error Refcounts::InUseAndFree(uint64_t cluster) {
  return state_.Corrupt("cluster " + std::to_string(cluster) + " is in use and counts as free");
}

Task<Result<void>> Refcounts::Change(uint64_t cluster, uint64_t count, bool up) {
  const uint32_t order = state_.layout().refcount_order;
  while (count != 0) {
    Result<Slice*> slice = co_await SliceOf(cluster, Access::kChange);
    if (!slice.ok()) co_return slice.error();
    if (*slice == nullptr) co_return InUseAndFree(cluster);
    const uint64_t index = IndexInSlice(cluster);
    const uint64_t step = std::min(count, slice_entries() - index);
    for (uint64_t i = 0; i < step; ++i) {
      const uint64_t old = LoadRefcount((*slice)->bytes.data(), index + i, order);
      if (old == 0) co_return InUseAndFree(cluster + i);
      if (up && old == state_.layout().max_refcount()) {
        co_return Error{ERANGE, "a cluster has as many references as the image's refcounts of " +
                                    std::to_string(state_.layout().refcount_bits()) + " bits can count"};
      }
      StoreRefcount((*slice)->bytes.data(), index + i, order, up ? old + 1 : old - 1);
      if (!up && old == 1) first_free_ = std::min(first_free_, cluster + i);
    }
    state_.cache->MarkDirty(**slice);
    cluster += step;
    count -= step;
  }
  co_return Result<void>();
}

Task<Result<void>> Refcounts::Increment(uint64_t offset, uint64_t clusters) {
  Result<void> changed = co_await Change(offset >> state_.layout().cluster_bits, clusters, true);
  co_return changed;
}

Task<Result<void>> Refcounts::Decrement(uint64_t offset, uint64_t clusters) {
  Result<void> changed = co_await Change(offset >> state_.layout().cluster_bits, clusters, false);
  co_return changed;
}

Task<Result<uint64_t>> Refcounts::Get(uint64_t offset) {
  const uint64_t cluster = offset >> state_.layout().cluster_bits;
  Result<Slice*> slice = co_await SliceOf(cluster, Access::kLook);
  if (!slice.ok()) co_return slice.error();
  if (*slice == nullptr) co_return uint64_t{0};
  co_return LoadRefcount((*slice)->bytes.data(), IndexInSlice(cluster), state_.layout().refcount_order);
}

bool Refcounts::HasBlock(uint64_t offset) const {
  const uint64_t block = offset >> state_.layout().cluster_bits >> state_.layout().block_bits();
  return block < state_.refcounts.entries.size() && state_.refcounts.entries[block] != 0;
}

Task<Result<void>> Refcounts::Set(uint64_t offset, uint64_t count) {
  const uint64_t cluster = offset >> state_.layout().cluster_bits;
  Result<Slice*> slice = co_await SliceOf(cluster, Access::kMake);
  if (!slice.ok()) co_return slice.error();
  StoreRefcount((*slice)->bytes.data(), IndexInSlice(cluster), state_.layout().refcount_order, count);
  state_.cache->MarkDirty(**slice);
  co_return Result<void>();
}

Task<Result<void>> Refcounts::GiveBack(std::vector<Freed> freed) {
  for (const Freed& range : freed) {
    for (uint64_t i = 0; i < range.clusters; ++i) {
      const uint64_t offset = range.offset + i * state_.cluster_bytes();
      const uint64_t cluster = offset >> state_.layout().cluster_bits;
      if (state_.tables.Overlaps(cluster, 1)) {
        co_return state_.Corrupt("cluster " + std::to_string(cluster) + " holds a table and is data as well");
      }
      Result<uint64_t> count = co_await Get(offset);
      if (!count.ok()) co_return count.error();
      // Before it can be taken by somebody else.
      if (*count == 1 && punch_holes_) (void)co_await device::DiscardIn(state_.file, offset, state_.cluster_bytes());
      Result<void> changed = co_await Decrement(offset, 1);
      if (!changed.ok()) co_return changed;
    }
  }
  co_return Result<void>();
}

Task<Result<void>> Refcounts::AddBlock(uint64_t block) {
  RangeLocks::Held lock = co_await growing_.Take(0, 0);
  const bool known = block < state_.refcounts.entries.size();
  if (known && state_.refcounts.entries[block] != 0) co_return Result<void>();
  Result<void> added;
  if (known) {
    added = co_await MakeBlock(block);
  } else {
    added = co_await MoveTable(block);
  }
  co_return added;
}

// A new block takes the first of the clusters that it counts: until now nothing counted them, so they are free.
Task<Result<void>> Refcounts::MakeBlock(uint64_t block) {
  const uint64_t cluster = block << state_.layout().block_bits();
  const uint64_t offset = cluster << state_.layout().cluster_bits;
  if (auto checked = CheckPlace(cluster, 1); !checked.ok()) co_return checked;
  state_.cache->Drop(offset, state_.cluster_bytes());
  Result<void> cleared = co_await ZeroClusters(state_, offset, 1, state_.IsFresh(offset));
  if (!cleared.ok()) co_return cleared;
  Slice* slice = nullptr;
  while (slice == nullptr || state_.LogFull() || (!slice->dirty && state_.cache->TooDirty())) {
    Result<void> done;
    if (slice == nullptr) {
      done = co_await state_.cache->Load(offset, TableKind::kRefcount);
    } else {
      done = co_await checkpointer_.Run();
    }
    if (!done.ok()) co_return done;
    slice = state_.cache->Find(offset);
  }
  // In this order: a successor takes no table for good that counts as free.
  StoreRefcount(slice->bytes.data(), 0, state_.layout().refcount_order, 1);
  state_.cache->MarkDirty(*slice);
  state_.refcounts.Set(block, offset);
  state_.tables.Add(cluster, 1);
  co_return Result<void>();
}

namespace {

// Where a larger refcount table goes: new blocks, then the table, in clusters that the old table could not count.
struct NewTable {
  uint64_t first_cluster = 0;
  uint64_t blocks = 0;
  uint64_t table_clusters = 0;
};

NewTable PlanTable(const Layout& layout, uint64_t block) {
  NewTable plan{.first_cluster = block << layout.block_bits(), .blocks = 1, .table_clusters = 1};
  const uint64_t entries_per_cluster = layout.cluster_bytes() / sizeof(uint64_t);
  for (;;) {
    // Half as much again as is needed, so that it moves seldom.
    const uint64_t entries = (block + plan.blocks) * 3 / 2;
    const uint64_t table_clusters = DivideUp(entries, entries_per_cluster);
    const uint64_t blocks = DivideUp(plan.blocks + table_clusters, layout.block_entries());
    if (blocks <= plan.blocks && table_clusters == plan.table_clusters) return plan;
    plan.table_clusters = table_clusters;
    plan.blocks = std::max(plan.blocks, blocks);
  }
}

}  // namespace

Task<Result<void>> Refcounts::MoveTable(uint64_t block) {
  const Layout& layout = state_.layout();
  const NewTable plan = PlanTable(layout, block);
  const uint64_t clusters = plan.blocks + plan.table_clusters;
  if (plan.table_clusters * layout.cluster_bytes() > kMaxRefcountTableBytes) {
    co_return Error{EFBIG, "the image has no room for more clusters of " + std::to_string(layout.cluster_bytes()) +
                               " bytes; convert it to one with larger clusters"};
  }
  if (auto checked = CheckPlace(plan.first_cluster, clusters); !checked.ok()) co_return checked;
  // The blocks that the table names are on the disk before the new one names them.
  Result<void> done = co_await checkpointer_.Run();
  if (!done.ok()) co_return done;

  const uint64_t offset = plan.first_cluster << layout.cluster_bits;
  const uint64_t table_offset = offset + plan.blocks * layout.cluster_bytes();
  Buffer bytes(layout.cluster_bytes());
  for (uint64_t i = 0; i < plan.blocks; ++i) {
    std::memset(bytes.data(), 0, bytes.size());
    const uint64_t before = i * layout.block_entries();
    for (uint64_t used = before; used < std::min(clusters, before + layout.block_entries()); ++used) {
      StoreRefcount(bytes.data(), used - before, layout.refcount_order, 1);
    }
    const int error = co_await device::WriteTo(state_.file, offset + i * bytes.size(), bytes.data(), bytes.size());
    if (error != 0) co_return ErrnoError(error, "writing a refcount block");
  }
  std::vector<uint64_t> entries = state_.refcounts.entries;
  entries.resize(plan.table_clusters * layout.cluster_bytes() / sizeof(uint64_t));
  for (uint64_t i = 0; i < plan.blocks; ++i) entries[block + i] = offset + i * layout.cluster_bytes();
  for (uint64_t i = 0; i < plan.table_clusters; ++i) {
    const uint64_t per_cluster = bytes.size() / sizeof(uint64_t);
    for (uint64_t j = 0; j < per_cluster; ++j) StoreBe64(bytes.data() + j * 8, entries[i * per_cluster + j]);
    const int error =
        co_await device::WriteTo(state_.file, table_offset + i * bytes.size(), bytes.data(), bytes.size());
    if (error != 0) co_return ErrnoError(error, "writing the refcount table");
  }
  const int error = co_await device::FlushOf(state_.file);
  if (error != 0) co_return ErrnoError(error, "flushing the refcount table");

  const uint64_t old_offset = state_.header.refcount_table_offset;
  const uint64_t old_clusters = state_.header.refcount_table_clusters;
  state_.header.refcount_table_offset = table_offset;
  state_.header.refcount_table_clusters = static_cast<uint32_t>(plan.table_clusters);
  Result<void> written = co_await WriteHeaderSector(state_);
  if (!written.ok()) {
    // Which table the file names is not known now.
    state_.corrupt = true;
    co_return written;
  }
  state_.refcounts.offset = table_offset;
  state_.refcounts.entries = std::move(entries);
  state_.refcounts.dirty_sectors.clear();
  state_.cache->Drop(offset, clusters * layout.cluster_bytes());
  state_.tables.Add(plan.first_cluster, clusters);
  state_.tables.Remove(old_offset >> layout.cluster_bits, old_clusters);
  state_.UseUpTo(offset + clusters * layout.cluster_bytes());
  checkpointer_.Free(old_offset, old_clusters);
  co_return Result<void>();
}

}  // namespace bulkhead::qcow2
