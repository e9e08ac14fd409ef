// SPDX-License-Identifier: Apache-2.0
// The kernel's vhost-net (linux/vhost.h), one for each pair of queues: a thread of the kernel's carries packets between
// the pair's rings and a tap, and no process sees them. What it takes for rings and buffers are addresses of the
// process that owns it, which is this one: it reaches nothing that this process has not mapped. Device thread.
#pragma once

#include <array>
#include <memory>

#include "device-procs/common/virtqueue.h"
#include "ipc/fd.h"

namespace bulkhead::device {

class VhostDevice {
 public:
  enum Queue : unsigned { kReceive, kTransmit };
  static constexpr unsigned kQueues = 2;

  virtual ~VhostDevice() = default;

  // By which the queues go, of those that a driver negotiated; the others are not its business.
  // From then on the kernel marks what it writes in the dirty log if that is on, and not if it is off.
  virtual Result<void> SetFeatures(uint64_t features) = 0;
  // Serves a queue, from where it stands, with a queue of a tap. `call` is an eventfd.
  virtual Result<void> Start(Queue queue, const Virtqueue& from, int call, int tap) = 0;
  // Of one that is served: where it lies, anew. The kernel marks its used ring, too, as the dirty log is now.
  virtual Result<void> SetPlace(Queue queue, const Virtqueue& of) = 0;
  // Signals another eventfd from now on: none that it signalled before when this returns.
  virtual Result<void> SetCall(Queue queue, int call) = 0;
  // When it returns the queue is not used any more, and all chains that were taken are given back; how far it came.
  virtual Result<uint16_t> Stop(Queue queue) = 0;
};

// Of /dev/vhost-net, newly opened. The memory outlives it. Before lock-down; throws FatalError. `kicks` are the queues'
// eventfds, of which it takes no count; `broken` is one that it signals when a driver broke a queue, or put something
// in it that is no packet.
std::unique_ptr<VhostDevice> MakeVhostDevice(OwnFd file, const GuestMemory& memory,
                                             const std::array<int, VhostDevice::kQueues>& kicks, int broken);

}  // namespace bulkhead::device
