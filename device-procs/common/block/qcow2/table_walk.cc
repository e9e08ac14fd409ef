// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/table_walk.h"

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {

using device::Task;

namespace {

constexpr uint64_t kPieceBytes = 64 * 1024;
constexpr const char* kGiveBacking = "give that with --backing FILE, or add --backing-from-header";

// Makes the flags of one second-level table true.
Task<Result<void>> UpdateCopiedIn(Qcow2Channel& image, uint64_t table) {
  ImageState& state = image.state();
  if (Result<void> spent = state.work.Spend(state.layout().l2_entries()); !spent.ok()) co_return spent;
  const uint64_t slice_entries = state.cache->slice_bytes() / sizeof(uint64_t);
  for (uint64_t index = 0; index < state.layout().l2_entries();) {
    const uint64_t at = table + index / slice_entries * state.cache->slice_bytes();
    Slice* slice = state.cache->Find(at);
    if (slice == nullptr) {
      Result<void> loaded = co_await state.cache->Load(at, TableKind::kL2);
      if (!loaded.ok()) co_return loaded;
      continue;
    }
    if (slice->kind != TableKind::kL2) co_return state.Corrupt("a second-level table is a refcount block as well");
    const uint64_t old = LoadBe64(slice->bytes.data() + index % slice_entries * 8);
    uint64_t entry = old & ~kCopied;
    if ((old & kCompressed) == 0 && (old & kOffsetMask) != 0) {
      Result<uint64_t> count = co_await image.refcounts().Get(old & kOffsetMask);
      if (!count.ok()) co_return count.error();
      if (*count == 1) entry |= kCopied;
    }
    if (entry == old) {
      ++index;
      continue;
    }
    if (state.cache->TooDirty()) {
      Result<void> run = co_await image.checkpointer().Run();
      if (!run.ok()) co_return run;
    }
    slice = state.cache->Find(at);
    // Put out meanwhile: once more.
    if (slice == nullptr || slice->kind != TableKind::kL2) continue;
    StoreBe64(slice->bytes.data() + index % slice_entries * 8, entry);
    state.cache->MarkDirty(*slice);
    ++index;
  }
  co_return Result<void>();
}

}  // namespace

Task<Result<void>> UpdateCopied(Qcow2Channel& image) {
  ImageState& state = image.state();
  for (uint64_t i = 0; i < state.l1.entries.size(); ++i) {
    const uint64_t table = state.l1.entries[i] & kOffsetMask;
    if (table == 0) continue;
    Result<uint64_t> count = co_await image.refcounts().Get(table);
    if (!count.ok()) co_return count.error();
    const uint64_t entry = table | (*count == 1 ? kCopied : 0);
    if (entry != state.l1.entries[i]) state.l1.Set(i, entry);
    Result<void> updated = co_await UpdateCopiedIn(image, table);
    if (!updated.ok()) co_return updated;
  }
  co_return Result<void>();
}

ClusterRange RangeOf(uint64_t entry, const Layout& layout) {
  if ((entry & kCompressed) != 0) {
    const CompressedExtent data = DecodeCompressed(entry, layout);
    const uint64_t first = data.offset >> layout.cluster_bits;
    const uint64_t last = (data.offset + data.size_bytes - 1) >> layout.cluster_bits;
    return {.offset = first << layout.cluster_bits, .clusters = last - first + 1};
  }
  const uint64_t offset = entry & kOffsetMask;
  return {.offset = offset, .clusters = offset != 0 ? uint64_t{1} : 0};
}

Task<Result<std::vector<uint64_t>>> ReadEntries(ImageState& state, uint64_t offset, uint64_t entries) {
  if (Result<void> spent = state.work.Spend(entries); !spent.ok()) co_return spent.error();
  const uint64_t size_bytes = entries * sizeof(uint64_t);
  const uint64_t end = RoundUp(state.file_end, state.cluster_bytes());
  const bool lies_in_file = offset < end && size_bytes <= end - offset;
  if (size_bytes != 0 && (!lies_in_file || (offset & state.layout().cluster_mask()) != 0)) {
    co_return Error{EINVAL, "a table at byte " + std::to_string(offset) + " is not where tables can be"};
  }
  std::vector<uint64_t> table;
  table.reserve(entries);
  Buffer piece(kPieceBytes);
  for (uint64_t done = 0; done < size_bytes; done += kPieceBytes) {
    const uint64_t step = RoundUp(std::min(kPieceBytes, size_bytes - done), kSectorBytes);
    const int error = co_await device::ReadFrom(state.file, offset + done, piece.data(), step);
    if (error != 0) co_return ErrnoError(error, "reading a table");
    for (uint64_t at = 0; at < std::min(step, size_bytes - done); at += sizeof(uint64_t)) {
      table.push_back(LoadBe64(piece.data() + at));
    }
  }
  co_return table;
}

Task<Result<uint64_t>> WriteL1(Qcow2Channel& image, std::vector<uint64_t> entries) {
  ImageState& state = image.state();
  if (entries.empty()) co_return uint64_t{0};
  const uint64_t size_bytes = entries.size() * sizeof(uint64_t);
  Result<Allocation> place = co_await image.refcounts().AllocateExactly(DivideUp(size_bytes, state.cluster_bytes()));
  if (!place.ok()) co_return place.error();
  WholeTable table;
  table.entries = std::move(entries);
  Buffer piece(kPieceBytes);
  const uint64_t end = place->clusters * state.cluster_bytes();
  for (uint64_t done = 0; done < end; done += kPieceBytes) {
    const uint64_t step = std::min(kPieceBytes, end - done);
    for (uint64_t at = 0; at < step; at += kSectorBytes) {
      table.EncodeSector((done + at) / kSectorBytes, piece.data() + at);
    }
    const int error = co_await device::WriteTo(state.file, place->offset + done, piece.data(), step);
    if (error != 0) co_return ErrnoError(error, "writing a table");
  }
  co_return place->offset;
}

Task<Result<void>> ReplaceL1(Qcow2Channel& image, std::vector<uint64_t> entries, uint64_t disk_bytes) {
  ImageState& state = image.state();
  const uint32_t bits = state.layout().cluster_bits;
  const auto clusters_of = [&](uint64_t count) { return DivideUp(count * sizeof(uint64_t), state.cluster_bytes()); };
  Result<uint64_t> place = co_await WriteL1(image, entries);
  if (!place.ok()) co_return place.error();
  // Its references are counted before the header names it.
  Result<void> done = co_await image.checkpointer().Run();
  if (!done.ok()) co_return done;
  const uint64_t old_offset = state.header.l1_offset;
  const uint64_t old_clusters = clusters_of(state.header.l1_entries);
  state.header.l1_offset = *place;
  state.header.l1_entries = static_cast<uint32_t>(entries.size());
  state.header.size_bytes = disk_bytes;
  done = co_await WriteHeaderSector(state);
  if (!done.ok()) co_return done;
  for (const uint64_t entry : state.l1.entries) {
    if ((entry & kOffsetMask) != 0) state.tables.Remove((entry & kOffsetMask) >> bits, 1);
  }
  state.tables.Remove(old_offset >> bits, old_clusters);
  state.tables.Add(*place >> bits, clusters_of(entries.size()));
  for (const uint64_t entry : entries) {
    if ((entry & kOffsetMask) != 0) state.tables.Add((entry & kOffsetMask) >> bits, 1);
  }
  state.l1.offset = *place;
  state.l1.entries = std::move(entries);
  state.l1.dirty_sectors.clear();
  if (old_clusters != 0) image.checkpointer().Free(old_offset, old_clusters);
  co_return Result<void>();
}

Task<Result<void>> MakeEmpty(Qcow2Channel& image) {
  ImageState& state = image.state();
  const uint64_t per_table = state.layout().l2_entries();
  for (uint64_t i = 0; i < state.l1.entries.size(); ++i) {
    if ((state.l1.entries[i] & kOffsetMask) == 0) continue;
    Result<void> changed = co_await image.mapping().Change(i * per_table, per_table, [&](uint64_t, uint64_t old) {
      image.mapping().Free(old);
      return uint64_t{0};
    });
    if (!changed.ok()) co_return changed;
  }
  image.reader().Forget();
  Result<void> settled = co_await image.checkpointer().Settle();
  co_return settled;
}

Task<Result<void>> SetBacking(Qcow2Channel& image, std::string file, std::string format) {
  ImageState& state = image.state();
  Header header = state.header;
  header.backing_file = std::move(file);
  header.backing_format = std::move(format);
  const Result<std::vector<std::byte>> bytes = SerializeHeader(header);
  if (!bytes.ok()) co_return bytes.error();
  Buffer cluster(bytes->size());
  std::memcpy(cluster.data(), bytes->data(), bytes->size());
  int error = co_await device::WriteTo(state.file, 0, cluster.data(), cluster.size());
  if (error == 0) error = co_await device::FlushOf(state.file);
  if (error != 0) co_return ErrnoError(error, "writing the header");
  state.header = std::move(header);
  std::memcpy(state.header_sector.data(), cluster.data(), kSectorBytes);
  co_return Result<void>();
}

namespace {

// What a larger disk gains is zeroes, even where its backing file is that long; an error where that cannot be had:
// where zeroes have to be written, what lies below has to be known.
Task<Result<void>> MayHideBeyond(Qcow2Channel& image, uint64_t old_bytes) {
  ImageState& state = image.state();
  if (state.header.backing_file.empty() || image.backing().channel != nullptr) co_return Result<void>();
  if (state.header.version < 3) {
    co_return Error{ENOTSUP,
                    std::string("in a version 2 image zeroes have to hide what its backing file has; ") + kGiveBacking};
  }
  if ((old_bytes & state.layout().cluster_mask()) == 0) co_return Result<void>();
  Result<Extent> last = co_await image.mapping().Find(old_bytes - kSectorBytes, kSectorBytes);
  if (!last.ok()) co_return last.error();
  if (last->kind != Extent::Kind::kUnallocated) co_return Result<void>();
  co_return Error{ENOTSUP,
                  std::string("its last cluster is its backing file's and would show more of it; ") + kGiveBacking};
}

// The image has its new size in memory, where nobody sees it yet.
Task<Result<void>> HideBeyond(Qcow2Channel& image, uint64_t old_bytes) {
  const Header& header = image.header();
  if (header.backing_file.empty()) co_return Result<void>();
  const uint64_t cluster_bytes = image.state().cluster_bytes();
  const uint64_t shown_end = std::min(header.size_bytes, image.backing().size_bytes);
  // Version 2 knows no zeroes but data; a part of a cluster is data too.
  const uint64_t data_end = header.version < 3 ? shown_end : std::min(shown_end, RoundUp(old_bytes, cluster_bytes));
  if (old_bytes < data_end) {
    Result<void> written = co_await image.writer().WriteZeroes(old_bytes, data_end - old_bytes, false);
    if (!written.ok()) co_return written;
  }
  if (header.version < 3) co_return Result<void>();
  const uint64_t first = DivideUp(old_bytes, cluster_bytes);
  Result<void> hidden = co_await image.writer().HideBacking(first, DivideUp(header.size_bytes, cluster_bytes) - first);
  co_return hidden;
}

}  // namespace

Task<Result<void>> Resize(Qcow2Channel& image, uint64_t disk_bytes, bool shrink) {
  ImageState& state = image.state();
  if (disk_bytes % kSectorBytes != 0) co_return Error{EINVAL, "the size is not a multiple of 512 bytes"};
  const uint64_t entries = state.layout().L1Entries(disk_bytes);
  if (entries * sizeof(uint64_t) > kMaxL1Bytes) {
    co_return Error{EFBIG, "its clusters of " + std::to_string(state.cluster_bytes()) +
                               " bytes are too small for a disk of that size"};
  }
  const uint64_t old_bytes = state.header.size_bytes;
  Result<void> done;
  if (disk_bytes > old_bytes) {
    done = co_await MayHideBeyond(image, old_bytes);
    if (!done.ok()) co_return done;
  }
  if (disk_bytes < old_bytes) {
    if (!shrink) co_return Error{EINVAL, "making it smaller loses what lies beyond; add --shrink if you mean it"};
    if (state.header.snapshot_count != 0) co_return Error{ENOTSUP, "it has snapshots; delete them before shrinking it"};
    // The rest of the last cluster would show again if the disk grew.
    done = co_await image.writer().WriteZeroes(disk_bytes, old_bytes - disk_bytes, true);
    if (!done.ok()) co_return done;
  }
  if (entries > state.l1.entries.size()) {
    done = co_await image.checkpointer().Settle();
    if (!done.ok()) co_return done;
    std::vector<uint64_t> grown = state.l1.entries;
    grown.resize(entries);
    done = co_await ReplaceL1(image, std::move(grown), old_bytes);
    if (!done.ok()) co_return done;
  }
  state.header.size_bytes = disk_bytes;
  if (disk_bytes > old_bytes) done = co_await HideBeyond(image, old_bytes);
  if (done.ok()) done = co_await image.checkpointer().Run();
  if (!done.ok()) {
    state.header.size_bytes = old_bytes;
    co_return done;
  }
  done = co_await WriteHeaderSector(state);
  if (done.ok()) done = co_await image.checkpointer().Settle();
  co_return done;
}

}  // namespace bulkhead::qcow2
