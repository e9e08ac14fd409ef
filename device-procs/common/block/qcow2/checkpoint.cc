// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/checkpoint.h"

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {
namespace {

// Slices that lie side by side go in one request of at most this many.
constexpr size_t kMaxRun = 256;

}  // namespace

using device::Task;

// What one checkpoint makes durable: copies, since work goes on meanwhile.
struct Checkpointer::Taken {
  std::vector<Slice*> slices;
  std::vector<TableKind> kinds;
  std::vector<uint64_t> offsets;
  Buffer slice_bytes;
  std::vector<uint64_t> l1_sectors;
  Buffer l1_bytes;
  std::vector<uint64_t> refcount_sectors;
  Buffer refcount_bytes;
  uint32_t noted = 0;  // how far the store's log was
  std::vector<Freed> freed;
  uint64_t epoch = 0;

  bool Has(TableKind kind) const { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); }
};

namespace {

void TakeSectors(WholeTable& table, std::vector<uint64_t>& sectors, Buffer& bytes) {
  sectors.assign(table.dirty_sectors.begin(), table.dirty_sectors.end());
  table.dirty_sectors.clear();
  if (sectors.empty()) return;
  bytes = Buffer(sectors.size() * kSectorBytes);
  for (size_t i = 0; i < sectors.size(); ++i) table.EncodeSector(sectors[i], bytes.data() + i * kSectorBytes);
}

}  // namespace

bool Checkpointer::dirty() const {
  // What a running one took is not there yet.
  return running_ || state_.cache->dirty() || !state_.l1.dirty_sectors.empty() ||
         !state_.refcounts.dirty_sectors.empty() || !freed_.empty();
}

Task<Result<void>> Checkpointer::Run() {
  // The one that is running may have taken its copies already.
  const uint64_t wanted = begun_ + 1;
  while (ended_ < wanted) {
    if (running_) {
      co_await ended_list_.Wait();
    } else {
      (void)co_await RunOne();
    }
  }
  // What one could not write the next one does.
  if (last_good_ >= wanted) co_return Result<void>();
  co_return last_error_;
}

Task<Result<void>> Checkpointer::RunOne() {
  running_ = true;
  const uint64_t number = ++begun_;
  Taken taken = Take();
  Result<void> written = co_await Write(taken);
  state_.cache->Written(taken.slices, !written.ok());
  if (written.ok()) {
    last_good_ = number;
    if (state_.store != nullptr) state_.store->Forget(taken.noted);
    if (!taken.freed.empty()) GiveBack(std::move(taken.freed), taken.epoch);
  } else {
    last_error_ = written.error();
    state_.l1.dirty_sectors.insert(taken.l1_sectors.begin(), taken.l1_sectors.end());
    state_.refcounts.dirty_sectors.insert(taken.refcount_sectors.begin(), taken.refcount_sectors.end());
    freed_.insert(freed_.end(), taken.freed.begin(), taken.freed.end());
  }
  ended_ = number;
  running_ = false;
  ended_list_.WakeAll();
  co_return written;
}

Checkpointer::Taken Checkpointer::Take() {
  Taken taken;
  taken.slices = state_.cache->TakeDirty();
  const uint64_t slice_bytes = state_.cache->slice_bytes();
  if (!taken.slices.empty()) taken.slice_bytes = Buffer(taken.slices.size() * slice_bytes);
  for (size_t i = 0; i < taken.slices.size(); ++i) {
    const Slice& slice = *taken.slices[i];
    taken.kinds.push_back(slice.kind);
    taken.offsets.push_back(slice.offset);
    std::memcpy(taken.slice_bytes.data() + i * slice_bytes, slice.bytes.data(), slice_bytes);
  }
  TakeSectors(state_.l1, taken.l1_sectors, taken.l1_bytes);
  TakeSectors(state_.refcounts, taken.refcount_sectors, taken.refcount_bytes);
  if (state_.store != nullptr) taken.noted = state_.store->noted();
  taken.freed = std::exchange(freed_, {});
  // Whoever comes from now on sees what is being written.
  taken.epoch = first_epoch_ + readers_.size() - 1;
  if (!taken.freed.empty()) readers_.push_back(0);
  return taken;
}

Task<Result<void>> Checkpointer::Write(Taken& taken) {
  const bool references = taken.Has(TableKind::kL2) || !taken.l1_sectors.empty();
  if (taken.Has(TableKind::kRefcount)) {
    Result<void> written = co_await WriteSlices(taken, TableKind::kRefcount);
    if (!written.ok()) co_return written;
  }
  if (!taken.refcount_sectors.empty()) {
    Result<void> flushed = co_await FlushFile();
    if (!flushed.ok()) co_return flushed;
    Result<void> written = co_await WriteSectors(state_.refcounts, taken.refcount_sectors, taken.refcount_bytes);
    if (!written.ok()) co_return written;
  }
  if (references) {
    Result<void> flushed = co_await FlushFile();
    if (!flushed.ok()) co_return flushed;
    Result<void> written = co_await WriteSlices(taken, TableKind::kL2);
    if (!written.ok()) co_return written;
  }
  if (!taken.l1_sectors.empty()) {
    Result<void> flushed = co_await FlushFile();
    if (!flushed.ok()) co_return flushed;
    Result<void> written = co_await WriteSectors(state_.l1, taken.l1_sectors, taken.l1_bytes);
    if (!written.ok()) co_return written;
  }
  Result<void> flushed = co_await FlushFile();
  co_return flushed;
}

namespace {

Task<Result<void>> WriteRun(device::BlockChannel& file, uint64_t offset, const std::byte* bytes, uint64_t size_bytes) {
  const int error = co_await device::WriteTo(file, offset, bytes, size_bytes);
  if (error != 0) co_return ErrnoError(error, "writing tables");
  co_return Result<void>();
}

}  // namespace

Task<Result<void>> Checkpointer::WriteSlices(const Taken& taken, TableKind kind) {
  const uint64_t slice_bytes = state_.cache->slice_bytes();
  device::TaskGroup writes;
  size_t first = 0;
  while (first < taken.slices.size()) {
    size_t end = first + 1;
    if (taken.kinds[first] != kind) {
      first = end;
      continue;
    }
    while (end < taken.slices.size() && end - first < kMaxRun && taken.kinds[end] == kind &&
           taken.offsets[end] == taken.offsets[end - 1] + slice_bytes) {
      ++end;
    }
    writes.Add(WriteRun(state_.file, taken.offsets[first], taken.slice_bytes.data() + first * slice_bytes,
                        (end - first) * slice_bytes));
    first = end;
  }
  Result<void> written = co_await writes;
  co_return written;
}

Task<Result<void>> Checkpointer::WriteSectors(const WholeTable& table, const std::vector<uint64_t>& sectors,
                                              const Buffer& bytes) {
  device::TaskGroup writes;
  for (size_t i = 0; i < sectors.size(); ++i) {
    writes.Add(
        WriteRun(state_.file, table.offset + sectors[i] * kSectorBytes, bytes.data() + i * kSectorBytes, kSectorBytes));
  }
  Result<void> written = co_await writes;
  co_return written;
}

Task<Result<void>> Checkpointer::FlushFile() {
  const int error = co_await device::FlushOf(state_.file);
  if (error != 0) co_return ErrnoError(error, "flushing the image");
  co_return Result<void>();
}

uint64_t Checkpointer::Enter() {
  ++readers_.back();
  return first_epoch_ + readers_.size() - 1;
}

void Checkpointer::Leave(uint64_t epoch) {
  --readers_[epoch - first_epoch_];
  bool changed = false;
  while (readers_.size() > 1 && readers_.front() == 0) {
    readers_.pop_front();
    ++first_epoch_;
    changed = true;
  }
  if (changed) epochs_changed_.WakeAll();
}

device::Spawned Checkpointer::GiveBack(std::vector<Freed> freed, uint64_t epoch) {
  ++giving_back_;
  while (first_epoch_ <= epoch && readers_.front() == 0 && readers_.size() > 1) {
    readers_.pop_front();
    ++first_epoch_;
  }
  while (first_epoch_ <= epoch) co_await epochs_changed_.Wait();
  // What fails here only leaks.
  (void)co_await release_(std::move(freed));
  --giving_back_;
  epochs_changed_.WakeAll();
}

Task<Result<void>> Checkpointer::Rest() {
  while (giving_back_ != 0) co_await epochs_changed_.Wait();
  co_return Result<void>();
}

Task<Result<void>> Checkpointer::Settle() {
  while (dirty() || giving_back_ != 0) {
    if (giving_back_ != 0 && !dirty()) {
      co_await epochs_changed_.Wait();
      continue;
    }
    Result<void> run = co_await Run();
    if (!run.ok()) co_return run;
    while (giving_back_ != 0) co_await epochs_changed_.Wait();
  }
  co_return Result<void>();
}

}  // namespace bulkhead::qcow2
