// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/raw_channel.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "device-procs/common/block/raw_image.h"
#include "ipc/result.h"

namespace bulkhead::device {
namespace {

// Bounced requests wait for one of these, so a guest of many ill-aligned buffers costs this much memory and no more.
constexpr size_t kBounceBytes = 256 * 1024;
constexpr size_t kBounceCount = 16;
constexpr uint64_t kBlockBytes = 512;  // the least that direct I/O goes by
constexpr size_t kMaxVectors = 1024;   // UIO_MAXIOV

uint64_t SizeOf(std::span<const iovec> vectors) {
  uint64_t size = 0;
  for (const iovec& vector : vectors) size += vector.iov_len;
  return size;
}

}  // namespace

class RawChannel::Operation final : public IoRing::Operation {
 public:
  explicit Operation(RawChannel& owner) : channel(owner) {}

  void Completed(int32_t result, bool) override { channel.Completed(*this, result); }

  // The caller's vectors that are still to come.
  std::span<iovec> rest() { return std::span(vectors).subspan(first_vector); }

  void Advance(uint64_t bytes) {
    offset += bytes;
    size_bytes -= bytes;
    while (bytes != 0 && first_vector < vectors.size()) {
      iovec& vector = vectors[first_vector];
      const uint64_t step = std::min<uint64_t>(bytes, vector.iov_len);
      vector.iov_base = static_cast<std::byte*>(vector.iov_base) + step;
      vector.iov_len -= step;
      bytes -= step;
      if (vector.iov_len == 0) ++first_vector;
    }
  }

  void FillRestWithZeroes() {
    for (const iovec& vector : rest()) std::memset(vector.iov_base, 0, vector.iov_len);
  }

  // Copies `bytes` between the bounce buffer and the vectors that are still to come.
  void Copy(uint64_t bytes) {
    std::byte* buffer = bounce;
    for (const iovec& vector : rest()) {
      const uint64_t step = std::min<uint64_t>(bytes, vector.iov_len);
      if (kind == Kind::kRead) {
        std::memcpy(vector.iov_base, buffer, step);
      } else {
        std::memcpy(buffer, vector.iov_base, step);
      }
      buffer += step;
      bytes -= step;
      if (bytes == 0) return;
    }
  }

  RawChannel& channel;
  Kind kind = Kind::kRead;
  uint64_t offset = 0;
  uint64_t size_bytes = 0;  // still to do
  BlockCompletion* done = nullptr;
  std::vector<iovec> vectors;
  size_t first_vector = 0;
  bool bounced = false;
  std::byte* bounce = nullptr;
  iovec bounce_vector{};
};

RawChannel::RawChannel(IoRing& ring, int fd, unsigned file, const BufferAlignment& alignment, PastEnd past_end,
                       void* zeroes)
    : ring_(ring),
      fd_(fd),
      file_(file),
      address_mask_(alignment.address_bytes - 1),
      length_mask_(alignment.length_bytes - 1),
      past_end_(past_end),
      zero_vectors_(kMaxVectors, iovec{zeroes, kZeroBytes}) {
  if ((address_mask_ | length_mask_) == 0) return;
  bounce_memory_ = static_cast<std::byte*>(std::aligned_alloc(kBounceAlignment, kBounceBytes * kBounceCount));
  if (bounce_memory_ == nullptr) throw FatalError("allocate buffers for direct I/O: out of memory", ENOMEM);
  for (size_t i = 0; i < kBounceCount; ++i) free_bounces_.push_back(bounce_memory_ + i * kBounceBytes);
}

RawChannel::~RawChannel() { std::free(bounce_memory_); }

RawChannel::Operation& RawChannel::Take(Kind kind, uint64_t offset, uint64_t size_bytes, BlockCompletion& done) {
  if (free_operations_.empty()) {
    operations_.push_back(std::make_unique<Operation>(*this));
    free_operations_.push_back(operations_.back().get());
  }
  Operation& operation = *free_operations_.back();
  free_operations_.pop_back();
  operation.kind = kind;
  operation.offset = offset;
  operation.size_bytes = size_bytes;
  operation.done = &done;
  operation.vectors.clear();
  operation.first_vector = 0;
  operation.bounced = false;
  return operation;
}

void RawChannel::Finish(Operation& operation, int error) {
  ReleaseBounce(operation);
  BlockCompletion& done = *operation.done;
  // Free first: the completion may start the next operation.
  free_operations_.push_back(&operation);
  done.Completed(error);
}

void RawChannel::Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) {
  StartTransfer(Kind::kRead, offset, to, done);
}

void RawChannel::Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) {
  StartTransfer(Kind::kWrite, offset, from, done);
}

void RawChannel::StartTransfer(Kind kind, uint64_t offset, std::span<const iovec> vectors, BlockCompletion& done) {
  Operation& operation = Take(kind, offset, SizeOf(vectors), done);
  if (operation.size_bytes == 0) {
    Finish(operation, 0);
    return;
  }
  operation.vectors.assign(vectors.begin(), vectors.end());
  operation.bounced = NeedsBounce(vectors);
  if (!operation.bounced || TakeBounce(operation)) Issue(operation);
}

void RawChannel::Flush(BlockCompletion& done) { Issue(Take(Kind::kFlush, 0, 0, done)); }

void RawChannel::Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) {
  Operation& operation = Take(Kind::kDiscard, offset, size_bytes, done);
  if (size_bytes == 0 || !can_punch_) {
    Finish(operation, 0);
  } else {
    Issue(operation);
  }
}

void RawChannel::WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) {
  const Kind in_place = can_zero_range_ ? Kind::kZeroRange : Kind::kWriteZeroes;
  Operation& operation = Take(unmap && can_punch_ ? Kind::kPunchZeroes : in_place, offset, size_bytes, done);
  if (size_bytes == 0) {
    Finish(operation, 0);
  } else {
    Issue(operation);
  }
}

void RawChannel::Reserve(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) {
  Operation& operation = Take(Kind::kReserve, offset, size_bytes, done);
  if (size_bytes == 0 || !can_reserve_) {
    Finish(operation, 0);
  } else {
    Issue(operation);
  }
}

Task<Result<BlockExtent>> RawChannel::Map(uint64_t offset, uint64_t size_bytes) {
  BlockExtent extent{.size_bytes = size_bytes, .data = true, .file_offset = offset};
  const auto at = static_cast<off_t>(offset);
  const off_t data = ::lseek(fd_, at, SEEK_DATA);
  if (data < 0 && errno == ENXIO) {
    // A hole up to the end, or past it.
    extent.data = false;
    extent.zero = true;
  } else if (data > at) {
    extent.data = false;
    extent.zero = true;
    extent.size_bytes = std::min(size_bytes, static_cast<uint64_t>(data) - offset);
  } else if (data == at) {
    const off_t hole = ::lseek(fd_, at, SEEK_HOLE);
    if (hole > at) extent.size_bytes = std::min(size_bytes, static_cast<uint64_t>(hole) - offset);
  }
  // Anything else: a device, or a file system that does not tell. Then all is data.
  if (extent.zero) extent.file_offset.reset();
  co_return extent;
}

void RawChannel::Issue(Operation& operation) {
  switch (operation.kind) {
    case Kind::kRead:
    case Kind::kWrite:
      IssueTransfer(operation);
      break;
    case Kind::kFlush:
      ring_.SyncData(file_, operation);
      break;
    case Kind::kDiscard:
    case Kind::kPunchZeroes:
      ring_.Allocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, operation.offset, operation.size_bytes,
                     operation);
      break;
    case Kind::kZeroRange:
      ring_.Allocate(file_, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, operation.offset, operation.size_bytes,
                     operation);
      break;
    case Kind::kReserve:
      ring_.Allocate(file_, 0, operation.offset, operation.size_bytes, operation);
      break;
    case Kind::kWriteZeroes:
      IssueZeroes(operation);
      break;
  }
}

void RawChannel::IssueTransfer(Operation& operation) {
  std::span<const iovec> vectors = operation.rest();
  vectors = vectors.first(std::min(vectors.size(), kMaxVectors));
  if (operation.bounced) {
    const size_t bytes = std::min<uint64_t>(operation.size_bytes, kBounceBytes);
    if (operation.kind == Kind::kWrite) operation.Copy(bytes);
    operation.bounce_vector = {operation.bounce, bytes};
    vectors = std::span(&operation.bounce_vector, 1);
  }
  if (operation.kind == Kind::kRead) {
    ring_.Readv(file_, operation.offset, vectors, operation);
  } else {
    ring_.Writev(file_, operation.offset, vectors, operation);
  }
}

void RawChannel::IssueZeroes(Operation& operation) {
  std::span<const iovec> vectors;
  if (operation.size_bytes >= kZeroBytes) {
    vectors = std::span(zero_vectors_).first(std::min<uint64_t>(operation.size_bytes / kZeroBytes, kMaxVectors));
  } else {
    operation.bounce_vector = {zero_vectors_[0].iov_base, operation.size_bytes};
    vectors = std::span(&operation.bounce_vector, 1);
  }
  ring_.Writev(file_, operation.offset, vectors, operation);
}

void RawChannel::Completed(Operation& operation, int32_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    Issue(operation);
    return;
  }
  const bool transfer =
      operation.kind == Kind::kRead || operation.kind == Kind::kWrite || operation.kind == Kind::kWriteZeroes;
  if (result == -EOPNOTSUPP && !transfer && operation.kind != Kind::kFlush) {
    NotSupported(operation);
  } else if (result < 0) {
    Finish(operation, -result);
  } else if (!transfer) {
    Finish(operation, 0);
  } else if (result == 0) {
    // Past the end: of a file that is known to end somewhere, or one that is shorter than it was.
    const bool zeroes = operation.kind == Kind::kRead && past_end_ == PastEnd::kZeroes;
    if (zeroes) operation.FillRestWithZeroes();
    Finish(operation, zeroes ? 0 : EIO);
  } else {
    TransferCompleted(operation, std::min<uint64_t>(static_cast<uint64_t>(result), operation.size_bytes));
  }
}

void RawChannel::TransferCompleted(Operation& operation, uint64_t bytes) {
  if (operation.bounced && operation.kind == Kind::kRead) operation.Copy(bytes);
  operation.Advance(bytes);
  // Only the end of the file cuts a block; past it direct I/O could not be asked from there.
  if (bytes % kBlockBytes != 0 && operation.kind == Kind::kRead && past_end_ == PastEnd::kZeroes) {
    operation.FillRestWithZeroes();
    operation.size_bytes = 0;
  }
  if (operation.size_bytes == 0) {
    Finish(operation, 0);
  } else {
    Issue(operation);
  }
}

void RawChannel::NotSupported(Operation& operation) {
  if (operation.kind == Kind::kReserve) {
    can_reserve_ = false;
    Finish(operation, 0);
    return;
  }
  if (operation.kind == Kind::kZeroRange) {
    can_zero_range_ = false;
    operation.kind = Kind::kWriteZeroes;
  } else {
    can_punch_ = false;
    if (operation.kind == Kind::kDiscard) {
      Finish(operation, 0);
      return;
    }
    operation.kind = can_zero_range_ ? Kind::kZeroRange : Kind::kWriteZeroes;
  }
  Issue(operation);
}

bool RawChannel::NeedsBounce(std::span<const iovec> vectors) const {
  if ((address_mask_ | length_mask_) == 0) return false;
  return std::any_of(vectors.begin(), vectors.end(), [this](const iovec& vector) {
    return (std::bit_cast<uintptr_t>(vector.iov_base) & address_mask_) != 0 || (vector.iov_len & length_mask_) != 0;
  });
}

bool RawChannel::TakeBounce(Operation& operation) {
  if (free_bounces_.empty()) {
    bounce_waiters_.push_back(&operation);
    return false;
  }
  operation.bounce = free_bounces_.back();
  free_bounces_.pop_back();
  return true;
}

void RawChannel::ReleaseBounce(Operation& operation) {
  if (operation.bounce == nullptr) return;
  free_bounces_.push_back(operation.bounce);
  operation.bounce = nullptr;
  if (bounce_waiters_.empty()) return;
  Operation& next = *bounce_waiters_.front();
  bounce_waiters_.pop_front();
  TakeBounce(next);
  Issue(next);
}

}  // namespace bulkhead::device
