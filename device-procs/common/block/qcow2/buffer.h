// SPDX-License-Identifier: Apache-2.0
// Memory for file I/O, aligned as direct I/O wants it, and a bound on how much of it is out at one time. Image's
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "device-procs/common/block/task.h"

namespace bulkhead::qcow2 {

class Buffer {
 public:
  static constexpr size_t kAlignment = 4096;

  Buffer() = default;
  // Its bytes are not set. The heap of a locked-down process is as large as its users' bounds together.
  explicit Buffer(size_t size_bytes)
      : memory_(static_cast<std::byte*>(std::malloc(size_bytes + kAlignment))), size_(size_bytes) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }

  // Aligned here: aligned_alloc looks for more than it then keeps, so that it never finds what the last one of the same
  // size gave back, and the heap grows.
  std::byte* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (-address & (kAlignment - 1));
  }
  size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data(), size_}; }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };

  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

// Hands out memory up to a limit; one request that is larger than that gets it while nobody else has any. Whoever holds
// some does not ask for more.
class BufferBudget {
 public:
  explicit BufferBudget(size_t limit_bytes) : limit_bytes_(limit_bytes) {}

  class Share {
   public:
    Share(BufferBudget& budget, size_t size_bytes) : budget_(&budget), size_bytes_(size_bytes) {
      budget.used_bytes_ += size_bytes;
    }
    Share(Share&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), size_bytes_(other.size_bytes_) {}
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    ~Share() {
      if (budget_ == nullptr) return;
      budget_->used_bytes_ -= size_bytes_;
      budget_->returned_.WakeAll();
    }

   private:
    BufferBudget* budget_;
    size_t size_bytes_;
  };

  device::Task<Share> Take(size_t size_bytes) {
    while (used_bytes_ != 0 && used_bytes_ + size_bytes > limit_bytes_) co_await returned_.Wait();
    co_return Share(*this, size_bytes);
  }

 private:
  const size_t limit_bytes_;
  size_t used_bytes_ = 0;
  device::WaitList returned_;
};

}  // namespace bulkhead::qcow2
