// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/mapping.h"

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {

using device::Task;

namespace {

Error BadEntry(uint64_t offset, uint64_t entry) {
  return {EIO,
          "the table entry of byte " + std::to_string(offset) + " is " + std::to_string(entry) + ", which cannot be"};
}

// One entry: what kind of cluster, and where.
Result<Extent> Decode(uint64_t entry, uint64_t cluster_offset, const Header& header) {
  Extent extent;
  extent.owned = (entry & kCopied) != 0;
  if ((entry & kCompressed) != 0) {
    extent.kind = Extent::Kind::kCompressed;
    extent.entry = entry;
    const CompressedExtent data = DecodeCompressed(entry, header.layout);
    if (data.offset < header.layout.cluster_bytes() || data.offset + data.size_bytes > kMaxFileBytes) {
      return BadEntry(cluster_offset, entry);
    }
    return extent;
  }
  const uint64_t offset = entry & kOffsetMask;
  const bool zero = (entry & kZero) != 0;
  if ((entry & kL2Reserved) != 0 || (zero && header.version < 3) || (offset & header.layout.cluster_mask()) != 0) {
    return BadEntry(cluster_offset, entry);
  }
  extent.file_offset = offset;
  if (zero) {
    extent.kind = offset != 0 ? Extent::Kind::kZeroAllocated : Extent::Kind::kZero;
  } else if (offset != 0) {
    extent.kind = Extent::Kind::kData;
  }
  return extent;
}

}  // namespace

uint64_t Mapping::SliceOffset(uint64_t table_offset, uint64_t cluster) const {
  const uint64_t index = cluster & (state_.layout().l2_entries() - 1);
  const uint64_t entries = state_.cache->slice_bytes() / sizeof(uint64_t);
  return table_offset + index / entries * state_.cache->slice_bytes();
}

Result<Extent> Mapping::Describe(const Slice& slice, uint64_t offset, uint64_t size_bytes) const {
  const Layout& layout = state_.layout();
  const uint64_t entries = state_.cache->slice_bytes() / sizeof(uint64_t);
  uint64_t cluster = offset >> layout.cluster_bits;
  const uint64_t in_cluster = offset & layout.cluster_mask();
  uint64_t index = cluster % entries;
  const uint64_t wanted = DivideUp(in_cluster + size_bytes, layout.cluster_bytes());
  Result<Extent> first =
      Decode(LoadBe64(slice.bytes.data() + index * 8), cluster << layout.cluster_bits, state_.header);
  if (!first.ok()) return first;
  uint64_t count = 1;
  while (count < wanted && index + count < entries && first->kind != Extent::Kind::kCompressed) {
    const Result<Extent> next = Decode(LoadBe64(slice.bytes.data() + (index + count) * 8),
                                       (cluster + count) << layout.cluster_bits, state_.header);
    // Where it is wrong it ends what is right.
    if (!next.ok() || next->kind != first->kind || next->owned != first->owned) break;
    if (first->kind == Extent::Kind::kData && next->file_offset != first->file_offset + count * layout.cluster_bytes())
      break;
    if (first->kind == Extent::Kind::kZeroAllocated) break;
    ++count;
  }
  if (first->kind == Extent::Kind::kData) first->file_offset += in_cluster;
  first->size_bytes = std::min(size_bytes, count * layout.cluster_bytes() - in_cluster);
  return first;
}

bool Mapping::FindNow(uint64_t offset, uint64_t size_bytes, Extent& extent) {
  if (state_.corrupt) return false;
  const uint64_t cluster = offset >> state_.layout().cluster_bits;
  const uint64_t table = state_.l1.entries[cluster >> state_.layout().l2_bits()] & kOffsetMask;
  if (table == 0) {
    extent = {.kind = Extent::Kind::kUnallocated};
    extent.size_bytes = std::min(size_bytes, state_.layout().l2_reach() - offset % state_.layout().l2_reach());
    return true;
  }
  const Slice* slice = state_.cache->Find(SliceOffset(table, cluster));
  if (slice == nullptr || slice->kind != TableKind::kL2) return false;
  const Result<Extent> found = Describe(*slice, offset, size_bytes);
  if (!found.ok()) return false;
  extent = *found;
  return true;
}

Task<Result<Extent>> Mapping::Find(uint64_t offset, uint64_t size_bytes) {
  const uint64_t cluster = offset >> state_.layout().cluster_bits;
  for (;;) {
    if (state_.corrupt) co_return Error{EIO, "the image is corrupt"};
    Extent extent;
    if (FindNow(offset, size_bytes, extent)) co_return extent;
    const uint64_t table = state_.l1.entries[cluster >> state_.layout().l2_bits()] & kOffsetMask;
    const uint64_t at = SliceOffset(table, cluster);
    const Slice* slice = state_.cache->Find(at);
    if (slice != nullptr && slice->kind != TableKind::kL2) {
      co_return state_.Corrupt("a second-level table is a refcount block as well");
    }
    if (slice != nullptr) {
      const Result<Extent> wrong = Describe(*slice, offset, size_bytes);
      if (!wrong.ok()) co_return state_.Corrupt(wrong.error().message);
      continue;
    }
    Result<void> loaded = co_await state_.cache->Load(at, TableKind::kL2);
    if (!loaded.ok()) co_return loaded.error();
  }
}

Task<Result<void>> Mapping::Change(uint64_t first, uint64_t count, ChangeEntry change) {
  const uint64_t entries = state_.cache->slice_bytes() / sizeof(uint64_t);
  for (uint64_t done = 0; done < count;) {
    const uint64_t cluster = first + done;
    const uint64_t l1_index = cluster >> state_.layout().l2_bits();
    if (state_.corrupt) co_return Error{EIO, "the image is corrupt"};
    if ((state_.l1.entries[l1_index] & kCopied) == 0) {
      Result<void> owned = co_await OwnTable(l1_index);
      if (!owned.ok()) co_return owned;
      continue;
    }
    const uint64_t at = SliceOffset(state_.l1.entries[l1_index] & kOffsetMask, cluster);
    Slice* slice = state_.cache->Find(at);
    if (slice == nullptr || (!slice->dirty && state_.cache->TooDirty())) {
      Result<void> ready;
      if (slice == nullptr) {
        ready = co_await state_.cache->Load(at, TableKind::kL2);
      } else {
        ready = co_await checkpointer_.Run();
      }
      if (!ready.ok()) co_return ready;
      continue;
    }
    if (slice->kind != TableKind::kL2) co_return state_.Corrupt("a second-level table is a refcount block as well");
    bool changed = false;
    for (uint64_t index = cluster % entries; done < count && index < entries; ++index, ++done) {
      const uint64_t old = LoadBe64(slice->bytes.data() + index * 8);
      const uint64_t entry = change(done, old);
      if (entry == old) continue;
      StoreBe64(slice->bytes.data() + index * 8, entry);
      changed = true;
    }
    if (changed) state_.cache->MarkDirty(*slice);
  }
  co_return Result<void>();
}

void Mapping::Free(uint64_t old_entry) {
  if ((old_entry & kCompressed) != 0) {
    const CompressedExtent data = DecodeCompressed(old_entry, state_.layout());
    const uint64_t first = data.offset >> state_.layout().cluster_bits;
    const uint64_t last = (data.offset + data.size_bytes - 1) >> state_.layout().cluster_bits;
    checkpointer_.Free(first << state_.layout().cluster_bits, last - first + 1);
  } else if ((old_entry & kOffsetMask) != 0) {
    checkpointer_.Free(old_entry & kOffsetMask, 1);
  }
}

Task<Result<void>> Mapping::OwnTable(uint64_t l1_index) {
  RangeLocks::Held lock = co_await tables_.Take(l1_index, l1_index);
  const uint64_t old = state_.l1.entries[l1_index];
  if ((old & kCopied) != 0) co_return Result<void>();
  Result<Allocation> place = co_await refcounts_.AllocateExactly(1);
  if (!place.ok()) co_return place.error();
  Result<void> made;
  if ((old & kOffsetMask) != 0) {
    made = co_await CopyTable(old & kOffsetMask, place->offset);
  } else {
    made = co_await ZeroClusters(state_, place->offset, 1, place->fresh);
  }
  while (made.ok() && state_.LogFull()) made = co_await checkpointer_.Run();
  if (!made.ok()) {
    (void)co_await refcounts_.Decrement(place->offset, 1);
    co_return made;
  }
  state_.tables.Add(place->offset >> state_.layout().cluster_bits, 1);
  state_.l1.Set(l1_index, place->offset | kCopied);
  // The old one is a snapshot's.
  if ((old & kOffsetMask) != 0) {
    state_.tables.Remove((old & kOffsetMask) >> state_.layout().cluster_bits, 1);
    checkpointer_.Free(old & kOffsetMask, 1);
  }
  co_return Result<void>();
}

Task<Result<void>> Mapping::CopyTable(uint64_t from, uint64_t to) {
  Buffer bytes(state_.cluster_bytes());
  int error = co_await device::ReadFrom(state_.file, from, bytes.data(), bytes.size());
  if (error == 0) error = co_await device::WriteTo(state_.file, to, bytes.data(), bytes.size());
  if (error != 0) co_return ErrnoError(error, "copying a table");
  co_return Result<void>();
}

}  // namespace bulkhead::qcow2
