// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/convert.h"

#include <algorithm>
#include <cstring>

#include "device-procs/common/block/qcow2/packing.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"
#include "device-procs/img/jobs.h"
#include "device-procs/img/joined_disks.h"
#include "device-procs/img/parts.h"

namespace bulkhead::img {

using device::BlockExtent;
using device::Task;
using qcow2::Buffer;

namespace {

// Clusters that are being compressed, and what becomes of them.
constexpr uint64_t kPackingBytes = uint64_t{8} << 20;

// A disk from its beginning to its end, in pieces that are zeroes or are not. What is known of an extent is asked once.
class Pieces {
 public:
  // Data end where a multiple of `step` is.
  Pieces(JoinedDisks& from, uint64_t step) : from_(from), step_(step) {}

  struct Piece {
    bool zero = false;
    uint64_t size_bytes = 0;
  };
  // `offset` is inside of the disk, and not before that of the last call.
  Task<Result<Piece>> At(uint64_t offset) {
    const uint64_t end = std::min(from_.size_bytes(), offset - offset % step_ + step_);
    uint64_t at = offset;
    do {
      if (at >= extent_end_) {
        Result<BlockExtent> extent = co_await from_.Map(at);
        if (!extent.ok()) co_return extent.error();
        zero_ = extent->zero;
        extent_end_ = at + extent->size_bytes;
      }
      if (zero_ && at == offset) co_return Piece{.zero = true, .size_bytes = extent_end_ - offset};
      if (zero_) break;
      at = std::min(extent_end_, end);
    } while (at < end);
    co_return Piece{.zero = false, .size_bytes = at - offset};
  }

 private:
  JoinedDisks& from_;
  const uint64_t step_;
  bool zero_ = false;
  uint64_t extent_end_ = 0;
};

// Copies that are under way side by side.
class Copies {
 public:
  Copies(unsigned most, Progress& progress) : most_(most), progress_(progress) {}

  // Waits until another may begin.
  Task<Result<void>> Room() {
    while (running_ >= most_) co_await ended_.Wait();
    if (failed_) co_return Error{EIO, "a copy failed"};
    co_return Result<void>();
  }
  void Add(Task<Result<void>> copy, uint64_t size_bytes) {
    ++running_;
    copies_.Add(Run(std::move(copy), size_bytes));
  }
  bool failed() const { return failed_; }
  // Once, at the end: the first error.
  Task<Result<void>> Wait() {
    Result<void> copied = co_await copies_;
    co_return copied;
  }

 private:
  Task<Result<void>> Run(Task<Result<void>> copy, uint64_t size_bytes) {
    Result<void> copied = co_await copy;
    progress_.done += size_bytes;
    if (!copied.ok()) failed_ = true;
    --running_;
    ended_.WakeAll();
    co_return copied;
  }

  const unsigned most_;
  Progress& progress_;
  device::TaskGroup copies_;
  device::WaitList ended_;
  unsigned running_ = 0;
  bool failed_ = false;
};

// How far from `at` on the bytes are zeroes, or are not, in steps of the shortest run that counts.
uint64_t RunLength(const Buffer& bytes, uint64_t at, bool zero, uint64_t zero_run_bytes) {
  if (zero_run_bytes == 0) return zero ? 0 : bytes.size() - at;
  uint64_t end = at;
  while (end < bytes.size()) {
    const uint64_t step = std::min<uint64_t>(zero_run_bytes, bytes.size() - end);
    if (IsZero(bytes.data() + end, step) != zero) break;
    end += step;
  }
  return end - at;
}

Task<Result<void>> CopyChunk(JoinedDisks& from, OpenImage& to, const ConvertOptions& options, uint64_t offset,
                             uint64_t size_bytes) {
  Buffer bytes(size_bytes);
  Result<void> done = co_await from.Read(offset, bytes.data(), size_bytes);
  for (uint64_t at = 0; done.ok() && at < size_bytes;) {
    const uint64_t zeroes = RunLength(bytes, at, true, options.zero_run_bytes);
    if (zeroes != 0) {
      if (!options.target_reads_zero) done = co_await ZeroPart(to, offset + at, zeroes);
      at += zeroes;
      continue;
    }
    const uint64_t data = RunLength(bytes, at, false, options.zero_run_bytes);
    done = co_await WritePart(to, offset + at, bytes.data() + at, data);
    at += data;
  }
  co_return done;
}

Task<Result<void>> ConvertPlain(JoinedDisks& from, OpenImage& to, const ConvertOptions& options, Progress& progress) {
  Copies copies(options.requests, progress);
  Pieces pieces(from, kChunkBytes);
  const uint64_t size_bytes = from.size_bytes();
  Result<void> done;
  for (uint64_t offset = 0; done.ok() && offset < size_bytes;) {
    Result<Pieces::Piece> piece = co_await pieces.At(offset);
    if (!piece.ok()) {
      done = piece.error();
      break;
    }
    if (piece->zero) {
      if (!options.target_reads_zero) done = co_await ZeroPart(to, offset, piece->size_bytes);
      progress.done += piece->size_bytes;
    } else {
      done = co_await copies.Room();
      if (done.ok()) copies.Add(CopyChunk(from, to, options, offset, piece->size_bytes), piece->size_bytes);
    }
    offset += piece->size_bytes;
  }
  Result<void> copied = co_await copies.Wait();
  if (!copied.ok()) co_return copied;
  co_return done;
}

// Of one chunk the clusters that the target, over its backing file, does not show already.
Task<Result<void>> CopyDifferences(JoinedDisks& from, OpenImage& to, uint64_t cluster_bytes, uint64_t offset,
                                   uint64_t size_bytes) {
  Buffer wanted(size_bytes);
  Buffer there(size_bytes);
  Result<void> done = co_await from.Read(offset, wanted.data(), size_bytes);
  if (done.ok()) done = co_await ReadPart(to, offset, there.data(), size_bytes);
  for (uint64_t at = 0; done.ok() && at < size_bytes; at += cluster_bytes) {
    const std::byte* const cluster = wanted.data() + at;
    const uint64_t step = std::min(cluster_bytes, size_bytes - at);
    if (std::memcmp(cluster, there.data() + at, step) == 0) continue;
    if (IsZero(cluster, step)) {
      done = co_await ZeroPart(to, offset + at, step);
    } else {
      done = co_await WritePart(to, offset + at, cluster, step);
    }
  }
  co_return done;
}

Task<Result<void>> ConvertOver(JoinedDisks& from, OpenImage& to, const ConvertOptions& options, Progress& progress) {
  Copies copies(options.requests, progress);
  const uint64_t cluster_bytes = to.chain->qcow2()->state().cluster_bytes();
  const uint64_t chunk_bytes = std::max(cluster_bytes, kChunkBytes);
  const uint64_t size_bytes = from.size_bytes();
  Result<void> done;
  for (uint64_t offset = 0; done.ok() && offset < size_bytes; offset += chunk_bytes) {
    done = co_await copies.Room();
    const uint64_t step = std::min(chunk_bytes, size_bytes - offset);
    if (done.ok()) copies.Add(CopyDifferences(from, to, cluster_bytes, offset, step), step);
  }
  Result<void> copied = co_await copies.Wait();
  if (!copied.ok()) co_return copied;
  co_return done;
}

// Several clusters are packed at a time; they are written one after the other, each where the one before ends.
class PackedCopier {
 public:
  PackedCopier(JoinedDisks& from, OpenImage& to, device::Offload& offload, Progress& progress)
      : from_(from),
        to_(to),
        target_(*to.chain->qcow2()),
        over_(target_.backing().channel != nullptr),
        cluster_bytes_(target_.state().cluster_bytes()),
        packing_(offload, target_.header().compression),
        // While some are packed the next are read and the last are written.
        copies_(static_cast<unsigned>(
                    std::clamp<uint64_t>(kPackingBytes / (2 * cluster_bytes_), 2, uint64_t{2} * offload.width())),
                progress) {}

  // Waits for room; the cluster is copied while the caller goes on.
  Task<Result<void>> Add(uint64_t offset, uint64_t size_bytes) {
    Result<void> room = co_await copies_.Room();
    if (room.ok()) copies_.Add(Copy(offset, size_bytes, added_++), size_bytes);
    co_return room;
  }
  Task<Result<void>> Wait() { return copies_.Wait(); }

 private:
  Task<Result<void>> Copy(uint64_t offset, uint64_t size_bytes, uint64_t number) {
    Buffer bytes(cluster_bytes_);
    Buffer packed(cluster_bytes_);
    Result<void> done = co_await from_.Read(offset, bytes.data(), cluster_bytes_);
    const bool zero = done.ok() && IsZero(bytes.data(), cluster_bytes_);
    // Without a file below it the target shows zeroes so far.
    bool same = zero;
    if (done.ok() && over_) {
      done = co_await ReadPart(to_, offset, packed.data(), cluster_bytes_);
      same = std::memcmp(bytes.data(), packed.data(), cluster_bytes_) == 0;
    }
    Result<size_t> size = size_t{0};
    if (done.ok() && !zero && !same) {
      size = co_await packing_.Pack(bytes.span(), packed.span().first(cluster_bytes_ - 1));
    }
    if (!size.ok()) done = size.error();
    while (written_ != number) co_await turn_.Wait();
    if (done.ok() && !same && !copies_.failed()) {
      if (zero) {
        done = co_await ZeroPart(to_, offset, size_bytes);
      } else if (*size != 0) {
        std::memset(packed.data() + *size, 0, qcow2::RoundUp(*size, qcow2::kSectorBytes) - *size);
        done = co_await target_.writer().WriteCompressed(offset, packed, *size);
      } else {
        done = co_await WritePart(to_, offset, bytes.data(), size_bytes);
      }
    }
    ++written_;
    turn_.WakeAll();
    co_return done;
  }

  JoinedDisks& from_;
  OpenImage& to_;
  qcow2::Qcow2Channel& target_;
  const bool over_;
  const uint64_t cluster_bytes_;
  qcow2::Packing packing_;
  Copies copies_;
  uint64_t added_ = 0;
  uint64_t written_ = 0;
  device::WaitList turn_;
};

Task<Result<void>> ConvertCompressed(JoinedDisks& from, OpenImage& to, device::Offload& offload, Progress& progress) {
  PackedCopier copier(from, to, offload, progress);
  const bool over = to.chain->qcow2()->backing().channel != nullptr;
  const uint64_t cluster_bytes = to.chain->qcow2()->state().cluster_bytes();
  const uint64_t size_bytes = from.size_bytes();
  Pieces pieces(from, cluster_bytes);
  Result<void> done;
  for (uint64_t offset = 0; done.ok() && offset < size_bytes;) {
    Result<Pieces::Piece> piece = co_await pieces.At(offset);
    if (!piece.ok()) {
      done = piece.error();
      break;
    }
    const uint64_t whole = piece->size_bytes / cluster_bytes * cluster_bytes;
    if (piece->zero && whole != 0 && !over) {
      progress.done += whole;
      offset += whole;
      continue;
    }
    const uint64_t step = std::min(cluster_bytes, size_bytes - offset);
    done = co_await copier.Add(offset, step);
    offset += step;
  }
  Result<void> copied = co_await copier.Wait();
  if (!copied.ok()) co_return copied;
  co_return done;
}

}  // namespace

Task<Result<void>> Convert(std::vector<OpenImage*> sources, OpenImage& to, ConvertOptions options,
                           device::Offload& offload, Progress& progress) {
  JoinedDisks from(std::move(sources));
  Result<void> done = co_await from.Open();
  if (done.ok()) done = co_await Open(to);
  if (!done.ok()) co_return done;
  const uint64_t size_bytes = from.size_bytes();
  if (to.chain->geometry().size_bytes < size_bytes) {
    co_return Error{EINVAL, "the target's disk is smaller than what is to become it"};
  }
  progress.total = size_bytes;
  const qcow2::Qcow2Channel* const target = to.chain->qcow2();
  const bool over = target != nullptr && target->backing().channel != nullptr;
  if (target != nullptr && !over && !target->header().backing_file.empty()) {
    co_return Error{EINVAL, "the target has a backing file; give that with -B"};
  }
  if (options.compress && target == nullptr) co_return Error{EINVAL, "only qcow2 images can be compressed"};
  if (options.compress) {
    done = co_await ConvertCompressed(from, to, offload, progress);
  } else if (over) {
    done = co_await ConvertOver(from, to, options, progress);
  } else {
    done = co_await ConvertPlain(from, to, options, progress);
  }
  if (done.ok()) done = co_await Finish(to);
  co_return done;
}

}  // namespace bulkhead::img
