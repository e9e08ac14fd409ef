// SPDX-License-Identifier: Apache-2.0
// Many measurements of the same, of which the middle and the slow end are told.
#pragma once

#include "tests/payload/lib/payload.h"

namespace payload {

class Samples {
 public:
  static constexpr unsigned kMost = 100'000;

  void Clear() { count_ = 0; }
  void Add(uint64_t value) {
    if (count_ < kMost) values_[count_++] = value;
  }
  // "bench NAME p50 N p99 N"; sorts them.
  void Print(const char* name);

 private:
  void SiftDown(unsigned root, unsigned end);

  uint64_t values_[kMost];
  unsigned count_;
};

}  // namespace payload
