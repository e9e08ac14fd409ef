// SPDX-License-Identifier: Apache-2.0
// Notification coalescing (virtio 1.3 §5.1.6.5.7): an interrupt is held back until so many packets were given back, or
// until so long after the first of them, whichever comes first. One thread; times are the caller's, in nanoseconds of
// one clock that never goes back.
#pragma once

#include <cstdint>

namespace bulkhead::device {

struct CoalesceLimits {
  uint32_t max_packets = 0;
  uint32_t max_usecs = 0;

  // With less there is nothing to hold back.
  bool active() const { return max_packets > 1 && max_usecs != 0; }
  bool operator==(const CoalesceLimits&) const = default;
};

class Coalescer {
 public:
  // Nothing is held back then; what was is for the caller to tell first.
  void Set(const CoalesceLimits& limits) {
    limits_ = limits;
    packets_ = 0;
  }
  bool active() const { return limits_.active(); }
  // One more packet was given back. True: the driver has to be told now.
  bool Add(uint64_t now_ns) {
    if (packets_++ == 0) due_ns_ = now_ns + uint64_t{limits_.max_usecs} * 1000;
    return packets_ >= limits_.max_packets || Due(now_ns);
  }
  bool Due(uint64_t now_ns) const { return packets_ != 0 && now_ns >= due_ns_; }
  // The driver was told.
  void Told() { packets_ = 0; }
  // Until when something may be held back; 0: nothing is.
  uint64_t due_ns() const { return packets_ != 0 ? due_ns_ : 0; }

 private:
  CoalesceLimits limits_;
  uint64_t packets_ = 0;
  uint64_t due_ns_ = 0;
};

}  // namespace bulkhead::device
