// SPDX-License-Identifier: Apache-2.0
// How much a guest may ask of a device: bytes and operations a second, of all its queues together. Each is a token
// bucket, kept as the time at which it will be full again: a request may begin while that is no further off than the
// burst takes, and then moves it on by what it costs. So a request is never split, and one that is larger than what is
// left makes the next ones wait. Times are the caller's, in nanoseconds of one clock that never goes back. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "ipc/control.capnp.h"

namespace bulkhead::device {

// Of one thing that is counted; a rate of 0: no limit.
struct ThrottleLimit {
  uint64_t per_second = 0;
  uint64_t burst = 0;  // what a device that was idle may do at once; 0: what the rate gives in a tenth of a second
};

struct ThrottleLimits {
  ThrottleLimit bytes;
  ThrottleLimit operations;
};

ThrottleLimits ThrottleLimitsOf(control::DiskThrottle::Reader limits);

class Throttle {
 public:
  // Takes effect at once; what was saved up or owed under the old limits is forgotten.
  void Set(const ThrottleLimits& limits);

  // A clock for it.
  static uint64_t NowNs();
  // Whether there is any limit: cheap, for each request.
  bool limited() const { return limited_.load(std::memory_order_relaxed); }
  // How long until a request may begin; 0: now.
  uint64_t WaitNs(uint64_t now_ns) const;
  // A request has begun.
  void Charge(uint64_t now_ns, uint64_t bytes, uint64_t operations);

 private:
  class Bucket {
   public:
    void Set(const ThrottleLimit& limit);
    uint64_t WaitNs(uint64_t now_ns) const;
    void Charge(uint64_t now_ns, uint64_t amount);

   private:
    uint64_t per_second_ = 0;
    uint64_t burst_ns_ = 0;
    uint64_t full_at_ns_ = 0;
  };

  std::atomic<bool> limited_ = false;
  mutable std::mutex mutex_;
  Bucket bytes_;
  Bucket operations_;
};

}  // namespace bulkhead::device
