// SPDX-License-Identifier: Apache-2.0
// How often a process that keeps dying is followed by another, and how soon: a device's, by the broker, and a broker,
// by the launcher. Main thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace bulkhead {

class Restraint {
 public:
  // At most so many within a minute; 0: none.
  explicit Restraint(uint32_t most = 0) : most_(most) {}

  // The process has died at that time (CLOCK_MONOTONIC): after how long another may be started; none: no other is.
  // At once, but for one that did not last: then after a time that doubles.
  std::optional<int64_t> Died(int64_t now_ns);

 private:
  uint32_t most_;
  std::deque<int64_t> deaths_ns_;  // of the last minute
  unsigned short_lives_ = 0;       // in a row
};

}  // namespace bulkhead
