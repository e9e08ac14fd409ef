// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/samples.h"

namespace payload {

void Samples::SiftDown(unsigned root, unsigned end) {
  for (unsigned child = 2 * root + 1; child < end; root = child, child = 2 * root + 1) {
    if (child + 1 < end && values_[child] < values_[child + 1]) ++child;
    if (values_[root] >= values_[child]) return;
    const uint64_t swapped = values_[root];
    values_[root] = values_[child];
    values_[child] = swapped;
  }
}

// Heap sort.
void Samples::Print(const char* name) {
  if (count_ == 0) return;
  for (unsigned i = count_ / 2; i-- > 0;) SiftDown(i, count_);
  for (unsigned end = count_; end-- > 1;) {
    const uint64_t largest = values_[0];
    values_[0] = values_[end];
    values_[end] = largest;
    SiftDown(0, end);
  }
  PrintLine("bench ", name, " p50 ", values_[count_ / 2], " p99 ", values_[count_ * 99ull / 100]);
}

}  // namespace payload
