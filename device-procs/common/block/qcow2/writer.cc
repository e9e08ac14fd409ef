// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/writer.h"

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/vectors.h"

namespace bulkhead::qcow2 {
namespace {

constexpr size_t kMaxPieces = 16;  // of one request that are under way at one time
// Zeroes that a version 2 image has to be written go in pieces of this size.
constexpr uint64_t kZeroPiece = 256 * 1024;
// Of a cluster that is filled up from what was there: as much may be read for nothing.
constexpr uint64_t kReadBetween = 16 * 1024;
// How far ahead of its end a file gets room: by a sixteenth, within these bounds.
constexpr uint64_t kLeastReserve = uint64_t{1} << 20;
constexpr uint64_t kMostReserve = uint64_t{64} << 20;

}  // namespace

using device::Task;

Task<Result<void>> Writer::Write(uint64_t offset, std::vector<iovec> from) {
  const uint64_t size_bytes = SizeOf(from);
  for (uint64_t done = 0; done < size_bytes;) {
    Result<uint64_t> step = co_await WriteSome(offset + done, from, done);
    if (!step.ok()) co_return step.error();
    done += *step;
  }
  co_return Result<void>();
}

Task<Result<uint64_t>> Writer::WriteSome(uint64_t offset, const std::vector<iovec>& from, uint64_t skipped) {
  const uint64_t size_bytes = SizeOf(from) - skipped;
  device::TaskGroup pieces;
  Result<void> failed;
  uint64_t done = 0;
  for (size_t count = 0; done < size_bytes && count < kMaxPieces; ++count) {
    Result<Extent> extent = co_await mapping_.Find(offset + done, size_bytes - done);
    if (!extent.ok()) {
      failed = extent.error();
      break;
    }
    std::vector<iovec> piece = Piece(from, skipped + done, extent->size_bytes);
    const Result<bool> in_place = MayWriteInPlace(*extent);
    if (!in_place.ok()) {
      failed = in_place.error();
      break;
    }
    if (*in_place) {
      pieces.Add(WriteInPlace(extent->file_offset, std::move(piece)));
    } else {
      pieces.Add(WriteAllocating(offset + done, std::move(piece)));
    }
    done += extent->size_bytes;
  }
  Result<void> written = co_await pieces;
  if (!failed.ok()) co_return failed.error();
  if (!written.ok()) co_return written.error();
  co_return done;
}

Result<bool> Writer::MayWriteInPlace(const Extent& extent) {
  if (!extent.InPlace()) return false;
  if (auto checked = CheckPlace(extent.file_offset, extent.size_bytes); !checked.ok()) return checked.error();
  return true;
}

Result<void> Writer::CheckPlace(uint64_t file_offset, uint64_t size_bytes) {
  const uint32_t bits = state_.layout().cluster_bits;
  const uint64_t first = file_offset >> bits;
  const uint64_t last = (file_offset + size_bytes - 1) >> bits;
  if (state_.tables.Overlaps(first, last - first + 1)) {
    return state_.Corrupt("data at byte " + std::to_string(file_offset) + " of the file would overwrite a table");
  }
  if (last << bits >= RoundUp(state_.file_end, state_.cluster_bytes())) {
    return state_.Corrupt("data at byte " + std::to_string(file_offset) + " would be past the end of the file");
  }
  return {};
}

Task<Result<void>> Writer::WriteInPlace(uint64_t file_offset, std::vector<iovec> from) {
  const int error = co_await device::WriteTo(state_.file, file_offset, from);
  if (error != 0) co_return ErrnoError(error, "writing the image");
  co_return Result<void>();
}

Task<Result<void>> Writer::WriteAllocating(uint64_t offset, std::vector<iovec> from) {
  const uint64_t size_bytes = SizeOf(from);
  const uint32_t bits = state_.layout().cluster_bits;
  for (uint64_t done = 0; done < size_bytes;) {
    const uint64_t at = offset + done;
    RangeLocks::Held lock = co_await clusters_.Take(at >> bits, (offset + size_bytes - 1) >> bits);
    // Who had it before may have allocated it.
    Result<Extent> extent = co_await mapping_.Find(at, size_bytes - done);
    if (!extent.ok()) co_return extent.error();
    const Result<bool> in_place = MayWriteInPlace(*extent);
    if (!in_place.ok()) co_return in_place.error();
    if (*in_place) {
      lock.Release();
      Result<void> written = co_await WriteInPlace(extent->file_offset, Piece(from, done, extent->size_bytes));
      if (!written.ok()) co_return written;
      done += extent->size_bytes;
      continue;
    }
    Result<uint64_t> step = co_await AllocateAndWrite(at, from, done, *extent);
    if (!step.ok()) co_return step.error();
    done += *step;
  }
  co_return Result<void>();
}

// New clusters for the beginning of an extent, as many as lie side by side; gives how much of it was written.
Task<Result<uint64_t>> Writer::AllocateAndWrite(uint64_t offset, const std::vector<iovec>& from, uint64_t skipped,
                                                Extent extent) {
  const uint64_t in_cluster = offset & state_.layout().cluster_mask();
  Allocation place;
  const bool kept = extent.kind == Extent::Kind::kZeroAllocated && extent.owned;
  if (kept) {
    place = {.offset = extent.file_offset, .clusters = 1, .fresh = false};
    const Result<void> checked = CheckPlace(place.offset, state_.cluster_bytes());
    if (!checked.ok()) co_return checked.error();
  } else {
    Result<Allocation> allocated =
        co_await refcounts_.Allocate(DivideUp(in_cluster + extent.size_bytes, state_.cluster_bytes()));
    if (!allocated.ok()) co_return allocated.error();
    place = *allocated;
  }
  extent.size_bytes = std::min(extent.size_bytes, place.clusters * state_.cluster_bytes() - in_cluster);
  Result<void> written = co_await WriteClusters(offset, Piece(from, skipped, extent.size_bytes), extent, place);
  if (!written.ok()) {
    // Nothing names them yet.
    if (!kept) (void)co_await refcounts_.Decrement(place.offset, place.clusters);
    co_return written.error();
  }
  // Where this fails, some entries may name them: then the others leak.
  Result<void> entered = co_await Enter(offset >> state_.layout().cluster_bits, place);
  if (!entered.ok()) co_return entered.error();
  co_return extent.size_bytes;
}

// Where there is no room the write itself will say so.
Task<int> Writer::ReserveFile(Allocation place) {
  const uint64_t end = place.offset + place.clusters * state_.cluster_bytes();
  while (end > reserved_end_) {
    if (state_.block_device) break;
    if (reserving_) {
      co_await reserved_.Wait();
      continue;
    }
    reserving_ = true;
    const uint64_t start = std::max(reserved_end_, place.offset);
    const uint64_t new_end = RoundUp(end + std::clamp(end / 16, kLeastReserve, kMostReserve), state_.cluster_bytes());
    co_await device::ReserveIn(state_.file, start, new_end - start);
    reserved_end_ = new_end;
    reserving_ = false;
    reserved_.WakeAll();
  }
  co_return 0;
}

// Writes whole clusters: what is around the data comes from what was there before.
Task<Result<void>> Writer::WriteClusters(uint64_t offset, std::vector<iovec> from, Extent old, Allocation place) {
  const uint64_t cluster = state_.cluster_bytes();
  const uint64_t size_bytes = SizeOf(from);
  const uint64_t head = offset & state_.layout().cluster_mask();
  const uint64_t tail = place.clusters * cluster - head - size_bytes;
  const bool reads_zero = old.kind == Extent::Kind::kZero || old.kind == Extent::Kind::kZeroAllocated ||
                          (old.kind == Extent::Kind::kUnallocated && !has_backing_);
  // Small writes each make a file system extend the file, one after the other.
  if (place.fresh && head + tail != 0) (void)co_await ReserveFile(place);
  if (head + tail == 0 || (place.fresh && reads_zero)) {
    Result<void> written = co_await WriteInPlace(place.offset + head, std::move(from));
    co_return written;
  }
  // What lies between the two is read with them, where that is little: one read costs less than two.
  const uint64_t between = !reads_zero && head != 0 && tail != 0 && size_bytes <= kReadBetween ? size_bytes : 0;
  const BufferBudget::Share share = co_await budget_.Take(head + between + tail);
  Buffer around(head + between + tail);
  std::memset(around.data(), 0, around.size());
  std::byte* const behind = around.data() + head + between;
  if (!reads_zero) {
    // The disk may end within its last cluster.
    const uint64_t end = offset + size_bytes;
    const uint64_t readable = std::min(tail, state_.header.size_bytes - end);
    device::TaskGroup reads;
    if (between != 0) {
      reads.Add(reader_.Read(offset - head, std::vector<iovec>(1, iovec{around.data(), head + between + readable})));
    } else {
      if (head != 0) reads.Add(reader_.Read(offset - head, std::vector<iovec>(1, iovec{around.data(), head})));
      if (readable != 0) reads.Add(reader_.Read(end, std::vector<iovec>(1, iovec{behind, readable})));
    }
    Result<void> read = co_await reads;
    if (!read.ok()) co_return read;
  }
  std::vector<iovec> all;
  if (head != 0) all.push_back({around.data(), head});
  all.insert(all.end(), from.begin(), from.end());
  if (tail != 0) all.push_back({behind, tail});
  Result<void> written = co_await WriteInPlace(place.offset, std::move(all));
  co_return written;
}

// The tables name the new clusters, and what they named before is given back.
Task<Result<void>> Writer::Enter(uint64_t first_cluster, Allocation place) {
  const uint64_t cluster = state_.cluster_bytes();
  bool packed = false;
  Result<void> changed =
      co_await mapping_.Change(first_cluster, place.clusters, [&](uint64_t index, uint64_t old) -> uint64_t {
        const uint64_t entry = (place.offset + index * cluster) | kCopied;
        if ((old & ~(kZero | kCopied)) != (entry & ~kCopied)) mapping_.Free(old);
        packed = packed || (old & kCompressed) != 0;
        return entry;
      });
  if (packed) reader_.Forget();
  co_return changed;
}

Task<Result<void>> Writer::WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap) {
  const uint32_t bits = state_.layout().cluster_bits;
  const uint64_t end = offset + size_bytes;
  // The disk's last cluster is whole where the disk ends.
  const uint64_t whole_end = end == state_.header.size_bytes ? RoundUp(end, state_.cluster_bytes()) : end;
  const uint64_t first = DivideUp(offset, state_.cluster_bytes());
  const uint64_t last = whole_end >> bits;
  if (first >= last) {
    Result<void> zeroed = co_await ZeroPart(offset, size_bytes);
    co_return zeroed;
  }
  Result<void> zeroed = co_await ZeroPart(offset, (first << bits) - offset);
  if (zeroed.ok()) zeroed = co_await ZeroWhole(first, last - first, unmap);
  if (zeroed.ok() && (last << bits) < end) zeroed = co_await ZeroPart(last << bits, end - (last << bits));
  co_return zeroed;
}

Task<Result<void>> Writer::ZeroPart(uint64_t offset, uint64_t size_bytes) {
  for (uint64_t done = 0; done < size_bytes;) {
    Result<Extent> extent = co_await mapping_.Find(offset + done, size_bytes - done);
    if (!extent.ok()) co_return extent.error();
    const bool zero = extent->kind == Extent::Kind::kZero || extent->kind == Extent::Kind::kZeroAllocated ||
                      (extent->kind == Extent::Kind::kUnallocated && !has_backing_);
    if (!zero) {
      const uint64_t step = std::min(extent->size_bytes, kZeroPiece);
      if (!zeroes_) {
        zeroes_ = Buffer(kZeroPiece);
        std::memset(zeroes_.data(), 0, kZeroPiece);
      }
      Result<void> written = co_await Write(offset + done, std::vector<iovec>(1, iovec{zeroes_.data(), step}));
      if (!written.ok()) co_return written;
      extent->size_bytes = step;
    }
    done += extent->size_bytes;
  }
  co_return Result<void>();
}

// What a cluster's entry becomes when it reads as zeroes.
uint64_t Writer::ZeroEntry(uint64_t old, bool unmap) const {
  if (state_.header.version < 3) return 0;
  const bool keeps = !unmap && (old & kCompressed) == 0 && (old & kCopied) != 0 && (old & kOffsetMask) != 0;
  if (keeps) return old | kZero;
  return has_backing_ ? kZero : 0;
}

Task<Result<void>> Writer::ZeroWhole(uint64_t first_cluster, uint64_t count, bool unmap) {
  const uint32_t bits = state_.layout().cluster_bits;
  if (state_.header.version < 3 && has_backing_) {
    // Nothing but zeroes hides what the backing file has.
    const uint64_t from = first_cluster << bits;
    const uint64_t end = std::min((first_cluster + count) << bits, state_.header.size_bytes);
    Result<void> zeroed = co_await ZeroPart(from, end - from);
    co_return zeroed;
  }
  RangeLocks::Held lock = co_await clusters_.Take(first_cluster, first_cluster + count - 1);
  for (uint64_t done = 0; done < count;) {
    const uint64_t cluster = first_cluster + done;
    const uint64_t in_table = cluster & (state_.layout().l2_entries() - 1);
    const uint64_t step = std::min(count - done, state_.layout().l2_entries() - in_table);
    done += step;
    if (!has_backing_ && !mapping_.HasTable(cluster)) continue;
    bool packed = false;
    Result<void> changed = co_await mapping_.Change(cluster, step, [&](uint64_t, uint64_t old) -> uint64_t {
      const uint64_t entry = ZeroEntry(old, unmap);
      if ((entry & kOffsetMask) == 0) mapping_.Free(old);
      packed = packed || (old & kCompressed) != 0;
      return entry;
    });
    if (packed) reader_.Forget();
    if (!changed.ok()) co_return changed;
  }
  co_return Result<void>();
}

Task<Result<void>> Writer::Discard(uint64_t offset, uint64_t size_bytes) {
  const uint32_t bits = state_.layout().cluster_bits;
  // Whatever shows through instead must not be what a backing file has.
  if (state_.header.version < 3 && has_backing_) co_return Result<void>();
  const uint64_t end = offset + size_bytes;
  const uint64_t whole_end = end == state_.header.size_bytes ? RoundUp(end, state_.cluster_bytes()) : end;
  const uint64_t first = DivideUp(offset, state_.cluster_bytes());
  const uint64_t last = whole_end >> bits;
  if (first >= last) co_return Result<void>();
  Result<void> discarded = co_await ZeroWhole(first, last - first, true);
  co_return discarded;
}

Task<Result<void>> Writer::HideBacking(uint64_t first_cluster, uint64_t count) {
  if (count == 0) co_return Result<void>();
  RangeLocks::Held lock = co_await clusters_.Take(first_cluster, first_cluster + count - 1);
  Result<void> changed = co_await mapping_.Change(
      first_cluster, count, [](uint64_t, uint64_t old) -> uint64_t { return old == 0 ? kZero : old; });
  co_return changed;
}

Task<Result<void>> Writer::WriteCompressed(uint64_t offset, const Buffer& packed, size_t size_bytes) {
  const uint32_t bits = state_.layout().cluster_bits;
  const uint64_t needed = RoundUp(size_bytes, kSectorBytes);
  uint64_t at = packed_at_;
  bool shares = packed_end_ - packed_at_ >= needed;
  if (shares) {
    Result<void> counted = co_await refcounts_.Increment(at & ~state_.layout().cluster_mask(), 1);
    // Narrow refcounts can count few to a cluster.
    if (!counted.ok() && counted.error().code != ERANGE) co_return counted;
    shares = counted.ok();
  }
  if (!shares) {
    Result<Allocation> place = co_await refcounts_.Allocate(1);
    if (!place.ok()) co_return place.error();
    at = place->offset;
    packed_end_ = place->offset + state_.cluster_bytes();
  }
  packed_at_ = at + needed;
  const int error = co_await device::WriteTo(state_.file, at, packed.data(), needed);
  if (error != 0) co_return ErrnoError(error, "writing the image");
  Result<void> changed = co_await mapping_.Change(offset >> bits, 1, [&](uint64_t, uint64_t old) -> uint64_t {
    mapping_.Free(old);
    return EncodeCompressed(at, size_bytes, state_.layout());
  });
  co_return changed;
}

}  // namespace bulkhead::qcow2
