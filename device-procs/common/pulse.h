// SPDX-License-Identifier: Apache-2.0
// Whether another thread still turns its loop: one asks, the other answers when it next comes by, and neither waits.
#pragma once

#include <atomic>

#include "ipc/fd.h"

namespace bulkhead::device {

class Pulse {
 public:
  // The asking thread: asks, wakes the other by its eventfd, and returns how many questions in a row have found the
  // one before still open.
  unsigned Ask(const OwnFd& wake) {
    open_ = asked_.exchange(true) ? open_ + 1 : 0;
    SignalEventFd(wake.get());
    return open_;
  }
  // The other.
  void Answer() { asked_.store(false); }

 private:
  std::atomic<bool> asked_ = false;
  unsigned open_ = 0;
};

}  // namespace bulkhead::device
