// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/vhost_pair.h"

#include <sys/epoll.h>

#include <utility>

namespace bulkhead::device {

VhostPair::VhostPair(EventLoop& loop, VhostPairParts parts) : loop_(loop), parts_(std::move(parts)) {
  loop_.Watch(parts_.broken.get(), EPOLLIN, [this] { Break(); });
  for (size_t i = 0; i < queues_.size(); ++i) {
    queues_[i].held_call = OrThrow(MakeEventFd());
    loop_.Watch(queues_[i].held_call.get(), EPOLLIN, [this, i] { PassOnCall(i); });
  }
}

VhostPair::~VhostPair() {
  Stop();
  loop_.Unwatch(parts_.broken.get());
  for (const Queue& queue : queues_) loop_.Unwatch(queue.held_call.get());
}

void VhostPair::Start(VirtioTransport& transport, uint64_t features) {
  if (transport_ != nullptr) return;
  transport_ = &transport;
  features_ = features;
  Serve();
}

void VhostPair::SetLink(bool up) {
  if (std::exchange(link_up_, up) == up || transport_ == nullptr) return;
  if (up) return Serve();
  for (size_t i = 0; i < queues_.size(); ++i) StopQueue(i);
}

void VhostPair::Serve() {
  // Where the outside is gone there is nothing to serve it with, which is no fault of the driver's.
  if (!link_up_ || parts_.outside_gone()) return;
  DrainEventFd(parts_.broken.get());
  if (StartQueues().ok() || parts_.outside_gone()) return;
  Break();
}

Result<void> VhostPair::StartQueues() {
  if (auto set = parts_.device->SetFeatures(features_); !set.ok()) return set;
  for (size_t i = 0; i < queues_.size(); ++i) {
    const Virtqueue* from = transport_->Queue(NumberOf(i));
    if (from == nullptr) continue;
    Queue& queue = queues_[i];
    queue.call = CallFor(i);
    auto started = parts_.device->Start(VhostDevice::Queue(i), *from, queue.call, parts_.tap);
    if (!started.ok()) return started;
    queue.started = true;
    // It looks at a queue when there is a kick, and there may have been one before.
    SignalEventFd(parts_.kicks[i]);
  }
  return {};
}

void VhostPair::Stop() {
  if (transport_ == nullptr) return;
  for (size_t i = 0; i < queues_.size(); ++i) StopQueue(i);
  transport_ = nullptr;
}

void VhostPair::StopQueue(size_t i) {
  if (!std::exchange(queues_[i].started, false)) return;
  // All that was taken was given back by then, so both ends are at one place.
  const auto position = parts_.device->Stop(VhostDevice::Queue(i));
  if (position.ok()) transport_->Queue(NumberOf(i))->MoveTo({*position, *position});
  PassOnCall(i);
  if (!position.ok()) transport_->MarkNeedsReset();
}

int VhostPair::CallFor(size_t queue) const {
  const int direct = transport_->InterruptFd(NumberOf(queue));
  return direct >= 0 ? direct : queues_[queue].held_call.get();
}

void VhostPair::InterruptsChanged() {
  if (transport_ == nullptr) return;
  for (size_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = queues_[i];
    const int call = CallFor(i);
    if (!queue.started || call == queue.call) continue;
    if (!parts_.device->SetCall(VhostDevice::Queue(i), call).ok()) return Break();
    queue.call = call;
  }
}

void VhostPair::FollowLog() {
  if (transport_ == nullptr) return;
  bool served = false;
  for (const Queue& queue : queues_) served = served || queue.started;
  if (!served) return;
  if (!parts_.device->SetFeatures(features_).ok()) return Break();
  for (size_t i = 0; i < queues_.size(); ++i) {
    if (!queues_[i].started) continue;
    if (!parts_.device->SetPlace(VhostDevice::Queue(i), *transport_->Queue(NumberOf(i))).ok()) return Break();
  }
}

// An interrupt that has to wait until its vector is unmasked; or which is, by now.
void VhostPair::PassOnCall(size_t queue) {
  if (DrainEventFd(queues_[queue].held_call.get()) != 0 && transport_ != nullptr) {
    transport_->SignalQueue(NumberOf(queue));
  }
}

void VhostPair::Break() {
  DrainEventFd(parts_.broken.get());
  VirtioTransport* const transport = transport_;
  if (transport == nullptr) return;
  Stop();
  transport->MarkNeedsReset();
}

}  // namespace bulkhead::device
