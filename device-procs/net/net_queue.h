// SPDX-License-Identifier: Apache-2.0
// A virtqueue of a network interface while it is served: a driver that breaks it marks the device as needing reset, and
// nothing more is taken from it. One thread, that of its pair or the device thread.
#pragma once

#include <span>

#include "device-procs/common/virtio_device.h"

namespace bulkhead::device {

class NetQueue {
 public:
  // Not served.
  NetQueue() = default;
  NetQueue(VirtioTransport& transport, uint16_t index)
      : transport_(&transport), queue_(transport.Queue(index)), index_(index) {}

  bool served() const { return queue_ != nullptr; }
  uint16_t size() const { return queue_->layout().size; }

  // False: there is none, or the driver broke the queue.
  bool Pop(Chain& chain) {
    if (!served()) return false;
    auto popped = queue_->Pop(chain);
    if (!popped.ok()) Break();
    return popped.ok() && *popped;
  }
  void UndoPop(uint16_t count) {
    if (served()) queue_->UndoPop(count);
  }
  void Push(std::span<const UsedChain> chains) {
    if (served() && !queue_->Push(chains).ok()) Break();
  }
  void Push(UsedChain chain) { Push(std::span(&chain, 1)); }

  // True: there are chains already.
  bool EnableKicks() {
    if (!served()) return false;
    auto more = queue_->EnableKicks();
    if (!more.ok()) Break();
    return more.ok() && *more;
  }
  void DisableKicks() {
    if (served() && !queue_->DisableKicks().ok()) Break();
  }
  // One interrupt decision for all that was given back since the last.
  void Signal() {
    if (!served()) return;
    auto wanted = queue_->NeedsInterrupt();
    if (!wanted.ok()) return Break();
    if (*wanted) transport_->SignalQueue(index_);
  }
  // The driver owes no kick for what it has made available.
  void KickAgain() const { SignalEventFd(transport_->KickFd(index_)); }
  // What the driver did is past mending.
  void Break() {
    queue_ = nullptr;
    transport_->MarkNeedsReset();
  }

 private:
  VirtioTransport* transport_ = nullptr;
  Virtqueue* queue_ = nullptr;
  uint16_t index_ = 0;
};

}  // namespace bulkhead::device
