// SPDX-License-Identifier: Apache-2.0
// Ranges of numbers (clusters of the disk, entries of a table) that one task at a time works on. Image's thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "device-procs/common/block/task.h"

namespace bulkhead::qcow2 {

class RangeLocks {
  struct Range {
    explicit Range(uint64_t last_number) : last(last_number) {}
    const uint64_t last;
    device::WaitList waiting;
  };
  using Map = std::map<uint64_t, std::shared_ptr<Range>>;

 public:
  class Held {
   public:
    Held() = default;
    Held(RangeLocks& locks, Map::iterator at) : locks_(&locks), at_(at) {}
    Held(Held&& other) noexcept : locks_(std::exchange(other.locks_, nullptr)), at_(other.at_) {}
    Held& operator=(Held&& other) noexcept {
      if (this == &other) return *this;
      Release();
      locks_ = std::exchange(other.locks_, nullptr);
      at_ = other.at_;
      return *this;
    }
    ~Held() { Release(); }

    // Those who waited go on inside of this call.
    void Release() {
      if (locks_ == nullptr) return;
      const auto range = at_->second;
      std::exchange(locks_, nullptr)->held_.erase(at_);
      range->waiting.WakeAll();
    }

   private:
    RangeLocks* locks_ = nullptr;
    Map::iterator at_;
  };

  // Waits until nobody holds any of [first, last].
  device::Task<Held> Take(uint64_t first, uint64_t last) {
    while (const auto range = Overlapping(first, last)) co_await range->waiting.Wait();
    co_return Held(*this, held_.emplace(first, std::make_shared<Range>(last)).first);
  }

 private:
  std::shared_ptr<Range> Overlapping(uint64_t first, uint64_t last) const {
    auto at = held_.upper_bound(last);
    if (at == held_.begin()) return nullptr;
    --at;
    return at->second->last >= first ? at->second : nullptr;
  }

  Map held_;  // by their first number; they do not overlap
};

}  // namespace bulkhead::qcow2
