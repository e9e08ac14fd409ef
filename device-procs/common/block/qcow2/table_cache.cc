// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/table_cache.h"

#include <algorithm>
#include <cstring>

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {
namespace {

// Below this, two requests could put out each other's tables for ever.
constexpr size_t kMinSlices = 16;

}  // namespace

using device::Task;

TableCache::TableCache(device::BlockChannel& file, uint64_t slice_bytes, uint64_t capacity_bytes, TableStore* store)
    : file_(file),
      slice_bytes_(slice_bytes),
      max_slices_(SlicesOf(slice_bytes, capacity_bytes)),
      max_dirty_(max_slices_ / 2),
      store_(store) {
  if (store_ != nullptr) adopted_.resize(max_slices_);
}

size_t TableCache::SlicesOf(uint64_t slice_bytes, uint64_t capacity_bytes) {
  return std::max<size_t>(kMinSlices, capacity_bytes / slice_bytes);
}

TableCache::~TableCache() = default;

Slice* TableCache::Find(uint64_t offset) {
  const auto found = by_offset_.find(offset);
  if (found == by_offset_.end() || (*found->second)->loading) return nullptr;
  slices_.splice(slices_.begin(), slices_, found->second);
  return found->second->get();
}

Slice& TableCache::Add(uint32_t slot) {
  slices_.push_front(std::make_unique<Slice>());
  Slice& slice = *slices_.front();
  if (store_ != nullptr) {
    slice.slot = slot;
    slice.bytes = store_->Bytes(slot);
  } else {
    slice.own = Buffer(slice_bytes_);
    slice.bytes = slice.own.span();
  }
  return slice;
}

void TableCache::Adopt(const TableStore::Slot& slot) {
  Slice& slice = Add(slot.number);
  slice.offset = slot.offset;
  slice.kind = slot.kind;
  slice.dirty = true;
  ++dirty_;
  adopted_[slot.number] = true;
  by_offset_[slot.offset] = slices_.begin();
}

Slice* TableCache::Free() {
  if (slices_.size() < max_slices_) {
    // The lowest first: what was never used costs no memory.
    while (store_ != nullptr && adopted_[next_slot_]) ++next_slot_;
    return &Add(next_slot_++);
  }
  for (auto at = slices_.rbegin(); at != slices_.rend(); ++at) {
    Slice& slice = **at;
    if (slice.loading || slice.dirty || slice.writing) continue;
    by_offset_.erase(slice.offset);
    slices_.splice(slices_.begin(), slices_, std::next(at).base());
    return slices_.front().get();
  }
  return nullptr;
}

bool TableCache::Busy() const {
  return std::any_of(slices_.begin(), slices_.end(),
                     [](const auto& slice) { return slice->loading || slice->writing; });
}

Task<Result<void>> TableCache::Load(uint64_t offset, TableKind kind) {
  // Somebody may be reading it already.
  while (by_offset_.contains(offset)) {
    if (Find(offset) != nullptr) co_return Result<void>();
    co_await changed_.Wait();
  }
  Slice* slice = Free();
  while (slice == nullptr) {
    if (!Busy()) co_return Error{EIO, "no table can be read while those that were changed cannot be written"};
    co_await changed_.Wait();
    if (by_offset_.contains(offset)) co_return Result<void>();
    slice = Free();
  }
  slice->offset = offset;
  slice->kind = kind;
  slice->loading = true;
  by_offset_[offset] = slices_.begin();
  // Not into the store: the kernel may end a read only after its process, and there are the successor's bytes then.
  const Buffer aside = store_ != nullptr ? Buffer(slice_bytes_) : Buffer();
  const int error = co_await device::ReadFrom(file_, offset, aside ? aside.data() : slice->bytes.data(), slice_bytes_);
  if (aside) std::memcpy(slice->bytes.data(), aside.data(), slice_bytes_);
  slice->loading = false;
  if (error != 0) {
    // It stays as a free one, at the end of the line.
    const auto at = by_offset_.find(offset);
    slices_.splice(slices_.end(), slices_, at->second);
    by_offset_.erase(at);
    slice->offset = UINT64_MAX;
  }
  changed_.WakeAll();
  if (error != 0) co_return ErrnoError(error, "reading a table at byte " + std::to_string(offset));
  co_return Result<void>();
}

void TableCache::MarkDirty(Slice& slice) {
  if (slice.dirty) return;
  slice.dirty = true;
  ++dirty_;
  if (store_ != nullptr) store_->MarkChanged({slice.slot, slice.offset, slice.kind});
}

void TableCache::Drop(uint64_t offset, uint64_t size_bytes) {
  for (uint64_t at = offset; at < offset + size_bytes; at += slice_bytes_) {
    const auto found = by_offset_.find(at);
    if (found == by_offset_.end()) continue;
    Slice& slice = **found->second;
    // What is being read or written belongs to somebody; a cluster is only given away when nobody uses it.
    if (slice.loading || slice.writing) continue;
    if (slice.dirty) --dirty_;
    if (slice.dirty && store_ != nullptr) store_->MarkSame(slice.slot);
    slice.dirty = false;
    slice.offset = UINT64_MAX;
    slices_.splice(slices_.end(), slices_, found->second);
    by_offset_.erase(found);
  }
}

std::vector<Slice*> TableCache::TakeDirty() {
  std::vector<Slice*> taken;
  for (const auto& slice : slices_) {
    if (!slice->dirty) continue;
    slice->dirty = false;
    slice->writing = true;
    taken.push_back(slice.get());
  }
  dirty_ = 0;
  std::sort(taken.begin(), taken.end(), [](const Slice* a, const Slice* b) { return a->offset < b->offset; });
  return taken;
}

void TableCache::Written(const std::vector<Slice*>& slices, bool failed) {
  for (Slice* slice : slices) {
    slice->writing = false;
    if (failed) MarkDirty(*slice);
    if (!slice->dirty && store_ != nullptr) store_->MarkSame(slice->slot);
  }
  changed_.WakeAll();
}

}  // namespace bulkhead::qcow2
