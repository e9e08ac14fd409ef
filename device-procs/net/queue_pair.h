// SPDX-License-Identifier: Apache-2.0
// Whoever carries the packets of one pair of queues: a thread of this process (pair_worker.h) or the kernel
// (vhost_pair.h). Made on the main thread before lock-down; all calls come from the device thread.
#pragma once

#include "device-procs/common/virtio_device.h"
#include "device-procs/net/coalescer.h"
#include "device-procs/net/counters.h"
#include "device-procs/net/receive_filter.h"

namespace bulkhead::device {

class QueuePair {
 public:
  virtual ~QueuePair() = default;

  // Serves the pair's queues of this transport, beginning with a look at each.
  virtual void Start(VirtioTransport& transport, uint64_t features) = 0;
  // When it returns the queues are not used any more.
  virtual void Stop() = 0;
  // While the link is down whatever the driver sends and whatever arrives is dropped, or waits. It is up at first.
  virtual void SetLink(bool up) = 0;
  virtual void SetFilter(const ReceiveFilter& filter) = 0;
  virtual void SetCoalescing(const CoalesceLimits& /*receive*/, const CoalesceLimits& /*transmit*/) {}
  virtual void InterruptsChanged() {}
  // The dirty log was switched.
  virtual void FollowLog() {}
  // Asks its thread, if it has one, for a sign of life (pulse.h).
  virtual unsigned AskPulse() { return 0; }

  // Null where nobody counts.
  virtual const NetCounters* received() const { return nullptr; }
  virtual const NetCounters* sent() const { return nullptr; }
};

}  // namespace bulkhead::device
