// SPDX-License-Identifier: Apache-2.0
// What the jobs on a whole image may cost: a small file must not keep one busy for hours. Tables of an honest image
// take up space and are visited a few times; a hostile one names the same tables over and over, or has them in holes.
// Image's thread.
#pragma once

#include <cstdint>

#include "ipc/result.h"

namespace bulkhead::device {

class WorkLimit {
 public:
  // `stored_bytes`: what the file takes up on its file system.
  explicit WorkLimit(uint64_t stored_bytes)
      : per_walk_(kEntriesForFree + kVisits * (stored_bytes / sizeof(uint64_t))),
        left_(per_walk_),
        max_walks_(kWalksForFree + stored_bytes / kBytesOfAWalk) {}

  // Before so many entries of tables are looked at.
  Result<void> Spend(uint64_t entries) {
    if (Result<void> checked = Affords(entries); !checked.ok()) return checked;
    left_ -= entries;
    return {};
  }
  // Whether Spend would allow it.
  Result<void> Affords(uint64_t entries) {
    exceeded_ = exceeded_ || entries > left_;
    if (!exceeded_) return {};
    return Error{E2BIG,
                 "its tables name each other again and again, or lie in holes: this would take more work than an image "
                 "in a file of its size can need"};
  }
  // All tables are walked through, one of `walks` times.
  Result<void> StartWalk(uint64_t walks) {
    exceeded_ = walks > max_walks_;
    left_ = per_walk_;
    return Affords(0);
  }
  bool exceeded() const { return exceeded_; }

 private:
  // Seconds of work; some file systems store tables in far less space than they have.
  static constexpr uint64_t kEntriesForFree = uint64_t{1} << 27;
  static constexpr uint64_t kVisits = 4;
  // Each part of the file that is checked in one walk has second-level tables of at least so many bytes, unless most of
  // what was in it is given back.
  static constexpr uint64_t kBytesOfAWalk = uint64_t{64} << 20;
  static constexpr uint64_t kWalksForFree = 32;

  const uint64_t per_walk_;
  uint64_t left_;
  const uint64_t max_walks_;
  bool exceeded_ = false;
};

}  // namespace bulkhead::device
