// SPDX-License-Identifier: Apache-2.0
// Whether another thread still turns its loop: one asks, the other answers when it next comes by, and neither waits.
// The asking thread wakes the other.
#pragma once

#include <atomic>

namespace bulkhead::device {

class Pulse {
 public:
  // The asking thread: asks, and returns how many questions in a row have found the first of them still open.
  unsigned Ask() {
    open_ = asked_.exchange(true) ? open_ + 1 : 0;
    return open_;
  }
  // The other.
  void Answer() { asked_.store(false); }

 private:
  std::atomic<bool> asked_ = false;
  unsigned open_ = 0;
};

}  // namespace bulkhead::device
