// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/qcow2_channel.h"

#include <algorithm>
#include <cerrno>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/table_walk.h"
#include "device-procs/common/block/qcow2/vectors.h"

namespace bulkhead::qcow2 {
namespace {

// Requests that may be worked on at one time; more wait, so that fragmented ones cost bounded memory.
constexpr size_t kMaxRunning = 256;
// The tables of a disk of 32 GiB with clusters of 64 KiB; a smaller one takes what it needs.
constexpr uint64_t kMaxCacheBytes = uint64_t{4} << 20;
static_assert(kMaxCacheBytes <= TableStore::kSlicesBytes);
constexpr uint64_t kMinCacheBytes = uint64_t{256} << 10;
constexpr uint64_t kReadPiece = 64 * 1024;

}  // namespace

using device::BlockCompletion;
using device::Task;

// A request that is one request to the file.
class Qcow2Channel::Direct final : public BlockCompletion {
 public:
  explicit Direct(Qcow2Channel& owner) : owner_(owner) {}

  void Begin(BlockCompletion& done) {
    done_ = &done;
    epoch_ = owner_.checkpointer_->Enter();
  }
  void Completed(int error) override {
    BlockCompletion& done = *done_;
    // Free first: the completion may start the next request.
    owner_.free_directs_.push_back(this);
    owner_.checkpointer_->Leave(epoch_);
    done.Completed(error);
  }

 private:
  Qcow2Channel& owner_;
  BlockCompletion* done_ = nullptr;
  uint64_t epoch_ = 0;
};

Qcow2Channel::Qcow2Channel(device::BlockChannel& file, const device::BlockGeometry& file_geometry,
                           device::Offload& offload, OpenOptions options)
    : state_(file, file_geometry, options.block_device, options.log), offload_(offload), options_(std::move(options)) {}

Qcow2Channel::~Qcow2Channel() = default;

Task<Result<void>> Qcow2Channel::Open() {
  Result<void> done = co_await ReadHeader();
  if (!done.ok()) co_return done;
  done = CheckRights();
  if (!done.ok()) co_return done;
  const Header& header = state_.header;
  const uint64_t slice_bytes = header.layout.slice_bytes();
  TableStore::Legacy legacy;
  if (options_.store != nullptr && !state_.read_only && options_.purpose == Purpose::kUse) {
    Result<TableStore::Legacy> left =
        options_.store->Open(slice_bytes, TableCache::SlicesOf(slice_bytes, CacheBytes()));
    if (!left.ok()) co_return left.error();
    legacy = std::move(*left);
    state_.store = options_.store;
  }
  state_.cache.emplace(state_.file, slice_bytes, CacheBytes(), state_.store);
  checkpointer_ = std::make_unique<Checkpointer>(
      state_, [this](std::vector<Freed> freed) { return refcounts_->GiveBack(std::move(freed)); });
  refcounts_ = std::make_unique<Refcounts>(state_, *checkpointer_);
  mapping_ = std::make_unique<Mapping>(state_, *refcounts_, *checkpointer_);
  reader_ = std::make_unique<Reader>(state_, *mapping_, offload_, options_.backing);
  writer_ = std::make_unique<Writer>(state_, *mapping_, *refcounts_, *reader_, options_.backing);
  done = co_await ReadTable("first-level table", header.l1_offset, header.l1_entries, kL1Reserved, state_.l1);
  if (!done.ok()) co_return done;
  // A reader needs no refcounts.
  if (state_.read_only && options_.purpose == Purpose::kUse) co_return Result<void>();
  done = co_await ReadTable("refcount table", header.refcount_table_offset,
                            header.refcount_table_bytes() / sizeof(uint64_t), kRefcountTableReserved, state_.refcounts);
  if (!done.ok()) co_return done;
  done = TakeOverEntries(legacy.changes);
  if (!done.ok()) co_return done;
  done = FindTables();
  if (!done.ok()) co_return done;
  TakeOverSlices(legacy.slots);
  if (header.autoclear != 0 && !state_.read_only) done = co_await ClearAutoclear();
  if (done.ok() && state_.cache->TooDirty()) MakeRoom();
  co_return done;
}

// There may be no slice left to read into; whoever needs one waits for this, and nobody else does.
device::Spawned Qcow2Channel::MakeRoom() { (void)co_await checkpointer_->Run(); }

Task<Result<void>> Qcow2Channel::ReadHeader() {
  Buffer first(kReadPiece);
  int error = co_await device::ReadFrom(state_.file, 0, first.data(), first.size());
  if (error != 0) co_return ErrnoError(error, "reading the header");
  const auto cluster_bits = ParseClusterBits(first.span());
  if (!cluster_bits.ok()) co_return cluster_bits.error();
  const uint64_t cluster_bytes = uint64_t{1} << *cluster_bits;
  Buffer whole(std::max(cluster_bytes, kReadPiece));
  error = co_await device::ReadFrom(state_.file, 0, whole.data(), whole.size());
  if (error != 0) co_return ErrnoError(error, "reading the header");
  Result<Header> header = ParseHeader(whole.span().first(cluster_bytes));
  if (!header.ok()) co_return header.error();
  state_.header = std::move(*header);
  std::memcpy(state_.header_sector.data(), whole.data(), kSectorBytes);
  co_return Result<void>();
}

Result<void> Qcow2Channel::CheckRights() const {
  if (state_.read_only || options_.purpose == Purpose::kCheck) return {};
  if ((state_.header.incompatible & kCorrupt) != 0) {
    return Error{EIO, "it is marked corrupt; repair it with `bulkhead img check -r all`, or use it read-only"};
  }
  if ((state_.header.incompatible & kDirty) != 0) {
    return Error{EIO, "it was not closed and its refcounts may be wrong; repair it with `bulkhead img check -r all`"};
  }
  return {};
}

uint64_t Qcow2Channel::CacheBytes() const {
  const Layout& layout = state_.layout();
  const uint64_t clusters = state_.header.size_bytes >> layout.cluster_bits;
  // An entry and a refcount for each cluster.
  const uint64_t all = clusters * sizeof(uint64_t) + (clusters << layout.refcount_order) / 8;
  return std::clamp(all * 2, kMinCacheBytes, kMaxCacheBytes);
}

Task<Result<void>> Qcow2Channel::ReadTable(const char* what, uint64_t offset, uint64_t entries, uint64_t reserved,
                                           WholeTable& table) {
  const uint64_t size_bytes = entries * sizeof(uint64_t);
  const auto wrong = [&](const std::string& why) { return Error{EINVAL, std::string("its ") + what + " " + why}; };
  if (entries != 0 && (offset >= state_.file_end || size_bytes > RoundUp(state_.file_end, kSectorBytes) - offset)) {
    co_return wrong("ends past the end of the file");
  }
  Result<std::vector<uint64_t>> read = co_await ReadEntries(state_, offset, entries);
  if (!read.ok()) co_return read.error();
  for (size_t i = 0; i < read->size(); ++i) {
    if (auto checked = CheckEntry(what, i, (*read)[i], reserved); !checked.ok()) co_return checked;
  }
  table.offset = offset;
  table.entries = std::move(*read);
  co_return Result<void>();
}

Result<void> Qcow2Channel::CheckEntry(const char* what, uint64_t index, uint64_t entry, uint64_t reserved) const {
  if ((entry & reserved) == 0 && (entry & kOffsetMask & state_.layout().cluster_mask()) == 0) return {};
  return Error{EINVAL, std::string("its ") + what + " has an entry (" + std::to_string(index) + ") that cannot be"};
}

Result<void> Qcow2Channel::TakeOverEntries(const std::vector<TableStore::Change>& changes) {
  for (const TableStore::Change& change : changes) {
    const bool l1 = change.table == TableStore::Table::kL1;
    WholeTable& table = l1 ? state_.l1 : state_.refcounts;
    const char* const what = l1 ? "first-level table" : "refcount table";
    if (change.index >= table.entries.size()) {
      return Error{EPROTO, std::string("the process before left a change past the end of its ") + what};
    }
    const uint64_t reserved = l1 ? kL1Reserved : kRefcountTableReserved;
    if (auto checked = CheckEntry(what, change.index, change.entry, reserved); !checked.ok()) return checked;
    table.SetUnlogged(change.index, change.entry);
  }
  state_.l1.store = state_.refcounts.store = state_.store;
  state_.refcounts.name = TableStore::Table::kRefcounts;
  return {};
}

// Only where a table is that may be written; what is elsewhere was being made into one, and nobody knows of it.
void Qcow2Channel::TakeOverSlices(const std::vector<TableStore::Slot>& slots) {
  if (slots.empty()) return;
  std::vector<uint64_t> owned, blocks;
  for (const uint64_t entry : state_.l1.entries) {
    if ((entry & kCopied) != 0 && (entry & kOffsetMask) != 0) owned.push_back(entry & kOffsetMask);
  }
  for (const uint64_t entry : state_.refcounts.entries) {
    if (entry != 0) blocks.push_back(entry);
  }
  std::sort(owned.begin(), owned.end());
  std::sort(blocks.begin(), blocks.end());
  for (const TableStore::Slot& slot : slots) {
    const std::vector<uint64_t>& tables = slot.kind == TableKind::kL2 ? owned : blocks;
    if (std::binary_search(tables.begin(), tables.end(), slot.offset & ~state_.layout().cluster_mask())) {
      state_.cache->Adopt(slot);
    } else {
      state_.store->MarkSame(slot.number);
    }
  }
}

Result<void> Qcow2Channel::FindTables() {
  const Header& header = state_.header;
  const uint32_t bits = header.layout.cluster_bits;
  std::vector<uint64_t> clusters{0};
  const auto add = [&](uint64_t offset, uint64_t size_bytes) {
    for (uint64_t at = 0; at < size_bytes; at += uint64_t{1} << bits) clusters.push_back((offset + at) >> bits);
  };
  add(header.l1_offset, uint64_t{header.l1_entries} * sizeof(uint64_t));
  add(header.refcount_table_offset, header.refcount_table_bytes());
  if (header.snapshot_count != 0) add(header.snapshots_offset, 1);
  const uint64_t end = RoundUp(state_.file_end, uint64_t{1} << bits);
  for (const WholeTable* table : {&state_.l1, &state_.refcounts}) {
    for (const uint64_t entry : table->entries) {
      const uint64_t offset = entry & kOffsetMask;
      if (offset == 0) continue;
      if (offset >= end && options_.purpose == Purpose::kUse) {
        return Error{EINVAL, "a table at byte " + std::to_string(offset) + " lies past the end of the file"};
      }
      clusters.push_back(offset >> bits);
    }
  }
  if (state_.tables.AddAll(std::move(clusters)) != 0 && options_.purpose == Purpose::kUse) {
    return Error{EINVAL, "its tables lie on each other; see `bulkhead img check`"};
  }
  return {};
}

// Who writes and does not keep up what these bits stand for has to clear them first.
Task<Result<void>> Qcow2Channel::ClearAutoclear() {
  state_.header.autoclear = 0;
  Result<void> written = co_await WriteHeaderSector(state_);
  co_return written;
}

Qcow2Channel::Direct& Qcow2Channel::TakeDirect(BlockCompletion& done) {
  if (free_directs_.empty()) {
    directs_.push_back(std::make_unique<Direct>(*this));
    free_directs_.push_back(directs_.back().get());
  }
  Direct& direct = *free_directs_.back();
  free_directs_.pop_back();
  direct.Begin(done);
  return direct;
}

device::Spawned Qcow2Channel::Run(Task<Result<void>> work, BlockCompletion& done) {
  while (running_ >= kMaxRunning) co_await may_run_.Wait();
  ++running_;
  int error = 0;
  {
    const Checkpointer::Reader reader(*checkpointer_);
    const Result<void> result = co_await work;
    if (!result.ok()) error = result.error().code != 0 ? result.error().code : EIO;
  }
  --running_;
  may_run_.WakeOne();
  done.Completed(error);
}

void Qcow2Channel::Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) {
  const uint64_t size_bytes = SizeOf(to);
  Extent extent;
  if (size_bytes != 0 && mapping_->FindNow(offset, size_bytes, extent) && extent.size_bytes == size_bytes &&
      extent.kind == Extent::Kind::kData) {
    state_.file.Read(extent.file_offset, to, TakeDirect(done));
    return;
  }
  Run(reader_->Read(offset, {to.begin(), to.end()}), done);
}

void Qcow2Channel::Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) {
  const uint64_t size_bytes = SizeOf(from);
  Extent extent;
  if (size_bytes != 0 && mapping_->FindNow(offset, size_bytes, extent) && extent.size_bytes == size_bytes &&
      extent.InPlace()) {
    const Result<bool> in_place = writer_->MayWriteInPlace(extent);
    if (!in_place.ok()) {
      done.Completed(EIO);
    } else {
      state_.file.Write(extent.file_offset, from, TakeDirect(done));
    }
    return;
  }
  Run(writer_->Write(offset, {from.begin(), from.end()}), done);
}

Task<Result<void>> Qcow2Channel::FlushTask() {
  if (!state_.read_only && checkpointer_->dirty()) {
    Result<void> run = co_await checkpointer_->Run();
    co_return run;
  }
  const int error = co_await device::FlushOf(state_.file);
  if (error != 0) co_return ErrnoError(error, "flushing the image");
  co_return Result<void>();
}

void Qcow2Channel::Flush(BlockCompletion& done) { Run(FlushTask(), done); }

void Qcow2Channel::Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) {
  Run(writer_->Discard(offset, size_bytes), done);
}

void Qcow2Channel::WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) {
  Run(writer_->WriteZeroes(offset, size_bytes, unmap), done);
}

Task<Result<device::BlockExtent>> Qcow2Channel::Map(uint64_t offset, uint64_t size_bytes) {
  Result<Extent> found = co_await mapping_->Find(offset, size_bytes);
  if (!found.ok()) co_return found.error();
  const uint64_t first = offset >> state_.layout().cluster_bits;
  const uint64_t looked_at =
      mapping_->HasTable(first) ? DivideUp(found->size_bytes, state_.cluster_bytes()) : uint64_t{1};
  if (Result<void> spent = state_.work.Spend(looked_at); !spent.ok()) co_return spent.error();
  device::BlockExtent extent{.size_bytes = found->size_bytes, .file_offset = {}};
  const uint64_t in_cluster = offset & state_.layout().cluster_mask();
  switch (found->kind) {
    case Extent::Kind::kUnallocated:
      extent.backing = true;
      extent.zero = options_.backing.channel == nullptr && state_.header.backing_file.empty();
      break;
    case Extent::Kind::kZero:
      extent.zero = true;
      break;
    case Extent::Kind::kZeroAllocated:
      extent.zero = true;
      extent.file_offset = found->file_offset + in_cluster;
      break;
    case Extent::Kind::kData:
      extent.data = true;
      extent.file_offset = found->file_offset;
      break;
    case Extent::Kind::kCompressed:
      extent.data = true;
      extent.compressed = true;
      break;
  }
  co_return extent;
}

Task<Result<void>> Qcow2Channel::Close() {
  Result<void> settled;
  if (!state_.read_only && !state_.corrupt) settled = co_await checkpointer_->Settle();
  // What goes on by itself uses the file as well.
  (void)co_await checkpointer_->Rest();
  (void)co_await state_.Marked();
  co_return settled;
}

}  // namespace bulkhead::qcow2
