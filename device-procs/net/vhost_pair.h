// SPDX-License-Identifier: Apache-2.0
// A pair of queues that the kernel serves (vhost_device.h): tells it where they lie, from where to go on, and which
// eventfd interrupts the guest, and learns at the end how far it came. Neither source rules nor limits nor the driver's
// filter hold for what it carries: filters are best effort (virtio 1.2 §5.1.6.5), and for the others the broker has
// seen to it that nobody asked for any. Device thread.
#pragma once

#include <array>
#include <functional>
#include <memory>

#include "device-procs/common/event_loop.h"
#include "device-procs/net/queue_pair.h"
#include "device-procs/net/vhost_device.h"

namespace bulkhead::device {

struct VhostPairParts {
  uint16_t index = 0;
  std::unique_ptr<VhostDevice> device;
  OwnFd broken;  // the eventfd that it was made with
  int tap = -1;  // a queue of it
  std::array<int, VhostDevice::kQueues> kicks{};
  std::function<bool()> outside_gone;
};

class VhostPair final : public QueuePair {
 public:
  // The loop outlives it. Throws FatalError.
  VhostPair(EventLoop& loop, VhostPairParts parts);
  ~VhostPair() override;

  void Start(VirtioTransport& transport, uint64_t features) override;
  void Stop() override;
  // Nothing is taken from the queues while it is down.
  void SetLink(bool up) override;
  void SetFilter(const ReceiveFilter&) override {}
  void InterruptsChanged() override;
  void FollowLog() override;

 private:
  struct Queue {
    OwnFd held_call;  // what the kernel signals while the guest may not be interrupted
    int call = -1;    // what it signals
    bool started = false;
  };

  uint16_t NumberOf(size_t queue) const { return static_cast<uint16_t>(2 * parts_.index + queue); }
  int CallFor(size_t queue) const;
  void Serve();
  Result<void> StartQueues();
  void StopQueue(size_t queue);
  void PassOnCall(size_t queue);
  void Break();

  EventLoop& loop_;
  VhostPairParts parts_;
  std::array<Queue, VhostDevice::kQueues> queues_;
  bool link_up_ = true;
  VirtioTransport* transport_ = nullptr;  // while started
  uint64_t features_ = 0;
};

}  // namespace bulkhead::device
