// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/reader.h"

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/vectors.h"

namespace bulkhead::qcow2 {
namespace {

// Of one request that are under way at one time: small clusters make many.
constexpr size_t kMaxPieces = 16;

}  // namespace

using device::Task;

Task<Result<void>> Reader::Read(uint64_t offset, std::vector<iovec> to) {
  const uint64_t size_bytes = SizeOf(to);
  for (uint64_t done = 0; done < size_bytes;) {
    Result<uint64_t> step = co_await ReadSome(offset + done, to, done);
    if (!step.ok()) co_return step.error();
    done += *step;
  }
  co_return Result<void>();
}

// As many pieces as may be under way at one time; gives their size. `to` is the caller's, from `skipped` on.
Task<Result<uint64_t>> Reader::ReadSome(uint64_t offset, const std::vector<iovec>& to, uint64_t skipped) {
  const uint64_t size_bytes = SizeOf(to) - skipped;
  device::TaskGroup pieces;
  Result<void> failed;
  uint64_t done = 0;
  for (size_t count = 0; done < size_bytes && count < kMaxPieces; ++count) {
    Result<Extent> extent = co_await mapping_.Find(offset + done, size_bytes - done);
    if (!extent.ok()) {
      failed = extent.error();
      break;
    }
    std::vector<iovec> piece = Piece(to, skipped + done, extent->size_bytes);
    switch (extent->kind) {
      case Extent::Kind::kData:
        pieces.Add(ReadData(extent->file_offset, std::move(piece)));
        break;
      case Extent::Kind::kCompressed:
        pieces.Add(ReadCompressed(extent->entry, (offset + done) & state_.layout().cluster_mask(), std::move(piece)));
        break;
      case Extent::Kind::kUnallocated:
        pieces.Add(ReadBacking(offset + done, std::move(piece)));
        break;
      case Extent::Kind::kZero:
      case Extent::Kind::kZeroAllocated:
        Zero(piece);
        break;
    }
    done += extent->size_bytes;
  }
  Result<void> read = co_await pieces;
  if (!failed.ok()) co_return failed.error();
  if (!read.ok()) co_return read.error();
  co_return done;
}

Task<Result<void>> Reader::ReadData(uint64_t file_offset, std::vector<iovec> to) {
  const int error = co_await device::ReadFrom(state_.file, file_offset, to);
  if (error != 0) co_return ErrnoError(error, "reading the image");
  co_return Result<void>();
}

Task<Result<void>> Reader::ReadBacking(uint64_t offset, std::vector<iovec> to) {
  const uint64_t size_bytes = SizeOf(to);
  const uint64_t there = offset < backing_.size_bytes ? std::min(size_bytes, backing_.size_bytes - offset) : 0;
  Zero(Piece(to, there, size_bytes - there));
  if (there == 0) co_return Result<void>();
  const std::vector<iovec> piece = Piece(to, 0, there);
  const int error = co_await device::ReadFrom(*backing_.channel, offset, piece);
  if (error != 0) co_return ErrnoError(error, "reading the backing file");
  co_return Result<void>();
}

Reader::Unpacked* Reader::Remembered(uint64_t entry) {
  for (Unpacked& cluster : unpacked_) {
    if (cluster.bytes && cluster.entry == entry) {
      cluster.used = ++uses_;
      return &cluster;
    }
  }
  return nullptr;
}

void Reader::Forget() {
  ++generation_;
  for (Unpacked& cluster : unpacked_) cluster = {};
}

Task<Result<void>> Reader::ReadCompressed(uint64_t entry, uint64_t in_cluster, std::vector<iovec> to) {
  while (under_way_.contains(entry)) co_await unpacked_one_.Wait();
  if (const Unpacked* known = Remembered(entry)) {
    CopyTo(to, known->bytes.data() + in_cluster);
    co_return Result<void>();
  }
  const UnderWay mark(*this, entry);
  const uint64_t generation = generation_;
  const CompressedExtent data = DecodeCompressed(entry, state_.layout());
  // In whole sectors, which the data need not begin with.
  const uint64_t from = data.offset / kSectorBytes * kSectorBytes;
  const uint64_t size_bytes = RoundUp(data.offset + data.size_bytes - from, kSectorBytes);
  const BufferBudget::Share share = co_await budget_.Take(size_bytes + state_.cluster_bytes());
  Buffer packed(size_bytes);
  const int error = co_await device::ReadFrom(state_.file, from, packed.data(), size_bytes);
  if (error != 0) co_return ErrnoError(error, "reading the image");
  Buffer bytes(state_.cluster_bytes());
  Result<void> unpacked = co_await unpacking_.Unpack(
      state_.header.compression, packed.span().subspan(data.offset - from, data.size_bytes), bytes.span());
  if (!unpacked.ok()) co_return unpacked;
  CopyTo(to, bytes.data() + in_cluster);
  if (generation != generation_) co_return Result<void>();
  Unpacked* oldest = &unpacked_[0];
  for (Unpacked& cluster : unpacked_) {
    if (cluster.used < oldest->used) oldest = &cluster;
  }
  oldest->entry = entry;
  oldest->used = ++uses_;
  oldest->bytes = std::move(bytes);
  co_return Result<void>();
}

}  // namespace bulkhead::qcow2
