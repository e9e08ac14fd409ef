// SPDX-License-Identifier: Apache-2.0
// The two ways between a BlockChannel's completions and tasks: calls of a channel that a task awaits, and a task whose
// end completes a call. The channel's thread.
#pragma once

#include "device-procs/common/block/block_image.h"

namespace bulkhead::device {

// Awaits one call of a channel; the value is 0 or an errno value. `Start` makes the call with a BlockCompletion.
template <typename Start>
class Awaited final : public BlockCompletion {
 public:
  explicit Awaited(Start start) : start_(std::move(start)) {}

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    start_(*this);
    // Completed inside the call: go on without a detour through the ring.
    suspended_ = !completed_;
    return suspended_;
  }
  int await_resume() const noexcept { return error_; }

  void Completed(int error) override {
    error_ = error;
    completed_ = true;
    if (suspended_) waiter_.resume();
  }

 private:
  Start start_;
  std::coroutine_handle<> waiter_;
  int error_ = 0;
  bool completed_ = false;
  bool suspended_ = false;
};

// The vectors are the caller's and live as long as the await; one buffer is a vector here.
inline auto ReadFrom(BlockChannel& channel, uint64_t offset, std::span<const iovec> to) {
  return Awaited([&channel, offset, to](BlockCompletion& done) { channel.Read(offset, to, done); });
}
inline auto WriteTo(BlockChannel& channel, uint64_t offset, std::span<const iovec> from) {
  return Awaited([&channel, offset, from](BlockCompletion& done) { channel.Write(offset, from, done); });
}
inline auto ReadFrom(BlockChannel& channel, uint64_t offset, void* to, size_t bytes) {
  return Awaited([&channel, offset, to, bytes](BlockCompletion& done) {
    const iovec vector{to, bytes};
    channel.Read(offset, {&vector, 1}, done);
  });
}
inline auto WriteTo(BlockChannel& channel, uint64_t offset, const void* from, size_t bytes) {
  return Awaited([&channel, offset, from, bytes](BlockCompletion& done) {
    const iovec vector{const_cast<void*>(from), bytes};
    channel.Write(offset, {&vector, 1}, done);
  });
}
inline auto FlushOf(BlockChannel& channel) {
  return Awaited([&channel](BlockCompletion& done) { channel.Flush(done); });
}
inline auto DiscardIn(BlockChannel& channel, uint64_t offset, uint64_t size_bytes) {
  return Awaited([&channel, offset, size_bytes](BlockCompletion& done) { channel.Discard(offset, size_bytes, done); });
}
inline auto ReserveIn(BlockChannel& channel, uint64_t offset, uint64_t size_bytes) {
  return Awaited([&channel, offset, size_bytes](BlockCompletion& done) { channel.Reserve(offset, size_bytes, done); });
}
inline auto WriteZeroesTo(BlockChannel& channel, uint64_t offset, uint64_t size_bytes, bool unmap) {
  return Awaited([&channel, offset, size_bytes, unmap](BlockCompletion& done) {
    channel.WriteZeroes(offset, size_bytes, unmap, done);
  });
}

}  // namespace bulkhead::device
