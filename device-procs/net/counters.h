// SPDX-License-Identifier: Apache-2.0
// What an interface has carried. One thread counts, any thread reads.
#pragma once

#include <atomic>
#include <cstdint>

namespace bulkhead::device {

class Counter {
 public:
  void Add(uint64_t amount) { value_.store(value() + amount, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_ = 0;
};

// Of one direction of one pair of queues.
struct NetCounters {
  Counter packets;
  Counter bytes;  // of frames
  Counter dropped;
  Counter refused;  // of these, those that said to come from somebody else
};

// Of one direction of all pairs, as it was when they were added up.
struct NetTotals {
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint64_t dropped = 0;
  uint64_t refused = 0;

  // Null: nobody counts there.
  void Add(const NetCounters* counters) {
    if (counters == nullptr) return;
    packets += counters->packets.value();
    bytes += counters->bytes.value();
    dropped += counters->dropped.value();
    refused += counters->refused.value();
  }
};

}  // namespace bulkhead::device
