// SPDX-License-Identifier: Apache-2.0
// Interrupts for what a queue of a network interface has given back: one decision for each batch, unless the driver
// wants them later. The pair's thread.
#pragma once

#include "device-procs/common/throttle.h"
#include "device-procs/net/coalescer.h"
#include "device-procs/net/net_queue.h"

namespace bulkhead::device {

class Notifier {
 public:
  // The queue outlives it.
  explicit Notifier(NetQueue& queue) : queue_(queue) {}

  void SetLimits(const CoalesceLimits& limits) {
    Flush();
    coalescer_.Set(limits);
  }
  // A packet was given back.
  void PacketDone() {
    if (coalescer_.active() && coalescer_.Add(Throttle::NowNs())) Tell();
  }
  // That was the last of a batch. To be called again at due_ns() at the latest.
  void BatchDone() {
    if (!coalescer_.active() || coalescer_.Due(Throttle::NowNs())) Tell();
  }
  // What is held back is told now.
  void Flush() {
    if (due_ns() != 0) Tell();
  }
  // By Throttle's clock; 0: nothing is held back.
  uint64_t due_ns() const { return coalescer_.due_ns(); }

 private:
  void Tell() {
    coalescer_.Told();
    queue_.Signal();
  }

  NetQueue& queue_;
  Coalescer coalescer_;
};

}  // namespace bulkhead::device
