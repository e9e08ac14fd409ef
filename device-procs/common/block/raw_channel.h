// SPDX-License-Identifier: Apache-2.0
// One queue's way to a raw image: vectors go to the kernel as they are, guest memory included; only where O_DIRECT
// cannot take them do they go through an aligned bounce buffer. What the kernel did only partly is asked for again.
// Queue thread.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "device-procs/common/block/block_image.h"

namespace bulkhead::device {

struct BufferAlignment;
enum class PastEnd : uint8_t;

class RawChannel final : public BlockChannel {
 public:
  static constexpr size_t kBounceAlignment = 4096;
  static constexpr size_t kZeroBytes = 64 * 1024;

  // `fd` is the image and `file` its number in `ring`; `zeroes` are kZeroBytes of them. All outlive the channel.
  RawChannel(IoRing& ring, int fd, unsigned file, const BufferAlignment& alignment, PastEnd past_end, void* zeroes);
  ~RawChannel() override;

  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override;
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override;
  void Flush(BlockCompletion& done) override;
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override;
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) override;
  void Reserve(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override;
  // Asks the file system, by a system call that a VM's disk process may not make: for jobs on whole images.
  Task<Result<BlockExtent>> Map(uint64_t offset, uint64_t size_bytes) override;

 private:
  class Operation;
  enum class Kind { kRead, kWrite, kFlush, kDiscard, kPunchZeroes, kZeroRange, kReserve, kWriteZeroes };

  Operation& Take(Kind kind, uint64_t offset, uint64_t size_bytes, BlockCompletion& done);
  void StartTransfer(Kind kind, uint64_t offset, std::span<const iovec> vectors, BlockCompletion& done);
  void Issue(Operation& operation);
  void IssueTransfer(Operation& operation);
  void IssueZeroes(Operation& operation);
  void Completed(Operation& operation, int32_t result);
  void TransferCompleted(Operation& operation, uint64_t bytes);
  void NotSupported(Operation& operation);
  void Finish(Operation& operation, int error);
  bool NeedsBounce(std::span<const iovec> vectors) const;
  bool TakeBounce(Operation& operation);
  void ReleaseBounce(Operation& operation);

  IoRing& ring_;
  const int fd_;
  const unsigned file_;
  const uint32_t address_mask_;
  const uint32_t length_mask_;
  const PastEnd past_end_;
  std::vector<iovec> zero_vectors_;
  // What the file turned out not to be able to do, by its answers.
  bool can_punch_ = true;
  bool can_reserve_ = true;
  bool can_zero_range_ = true;

  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<Operation*> free_operations_;
  std::byte* bounce_memory_ = nullptr;
  std::vector<std::byte*> free_bounces_;
  std::deque<Operation*> bounce_waiters_;
};

}  // namespace bulkhead::device
