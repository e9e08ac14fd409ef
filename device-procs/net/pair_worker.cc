// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/pair_worker.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <utility>

namespace bulkhead::device {

PairWorker::PairWorker(PairWorkerParts parts)
    : parts_(std::move(parts)),
      receiver_(*parts_.memory, *parts_.port, *parts_.receive_throttle),
      transmitter_(*parts_.memory, *parts_.port, *parts_.guard, *parts_.transmit_throttle, parts_.log),
      alarm_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)),
      thread_(loop_, "queue" + std::to_string(parts_.index)) {
  if (!alarm_.valid()) ThrowErrno("make a timer");
  // Edge-triggered, so that no count need be read and a packet that has to wait wakes nobody. What a kick asks for is
  // done by Drain, which every round of the loop begins with.
  loop_.Watch(parts_.transmit_kick, EPOLLIN | EPOLLET, [] {});
  loop_.Watch(parts_.receive_kick, EPOLLIN | EPOLLET, [this] {
    if (!serving_) parts_.stray_kick();
  });
  loop_.Watch(parts_.port->fd(), EPOLLIN | EPOLLET, [this] {
    receiver_.PortReadable();
    ServeReceiver();
  });
  loop_.Watch(alarm_.get(), EPOLLIN | EPOLLET, [] {});
  loop_.SetPoller(this);
  thread_.Start();
}

PairWorker::~PairWorker() { Stop(); }

void PairWorker::Start(VirtioTransport& transport, uint64_t features) {
  thread_.Call([&] {
    if (std::exchange(serving_, true)) return;
    receiver_.Start({transport, static_cast<uint16_t>(2 * parts_.index)}, features);
    transmitter_.Start({transport, static_cast<uint16_t>(2 * parts_.index + 1)}, features);
    Serve();
  });
}

void PairWorker::Stop() {
  thread_.Call([&] {
    if (!std::exchange(serving_, false)) return;
    receiver_.End();
    transmitter_.End();
  });
}

void PairWorker::SetLink(bool up) {
  thread_.Call([&] {
    receiver_.SetLink(up);
    transmitter_.SetLink(up);
    Serve();
  });
}

void PairWorker::SetCoalescing(const CoalesceLimits& receive, const CoalesceLimits& transmit) {
  thread_.Call([&] {
    receiver_.SetCoalescing(receive);
    transmitter_.SetCoalescing(transmit);
  });
}

void PairWorker::SetFilter(const ReceiveFilter& filter) {
  thread_.Call([&] { receiver_.SetFilter(filter); });
}

void PairWorker::Drain() { Serve(); }

bool PairWorker::PrepareToSleep() {
  if (!serving_) return true;
  if (more_to_receive_ || more_to_send_) return false;
  const bool receive = receiver_.EnableKicks();
  if (transmitter_.EnableKicks() || receive) return false;
  SetAlarm();
  return true;
}

// For the interrupt that is due first; finer than the loop's own sleep.
void PairWorker::SetAlarm() {
  uint64_t due_ns = UINT64_MAX;
  for (const uint64_t each : {receiver_.notification_due_ns(), transmitter_.notification_due_ns()}) {
    if (each != 0) due_ns = std::min(due_ns, each);
  }
  if (due_ns == UINT64_MAX || due_ns == std::exchange(alarm_ns_, due_ns)) return;
  constexpr uint64_t kSecondNs = 1'000'000'000;
  const itimerspec when{.it_interval = {},
                        .it_value = {.tv_sec = static_cast<time_t>(due_ns / kSecondNs),
                                     .tv_nsec = static_cast<long>(due_ns % kSecondNs)}};
  ::timerfd_settime(alarm_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

int PairWorker::SleepMs() {
  constexpr uint64_t kMillisecondNs = 1'000'000;
  // Limits may be lifted meanwhile, so it is never long.
  constexpr uint64_t kLongestMs = 100;
  uint64_t wait_ns = UINT64_MAX;
  for (const uint64_t each : {receiver_.throttled_ns(), transmitter_.throttled_ns()}) {
    if (each != 0) wait_ns = std::min(wait_ns, each);
  }
  return wait_ns == UINT64_MAX ? -1 : static_cast<int>(std::min(wait_ns / kMillisecondNs + 1, kLongestMs));
}

void PairWorker::ServeReceiver() {
  if (!serving_) return;
  more_to_receive_ = receiver_.Serve();
  if (receiver_.gone() && !std::exchange(told_gone_, true)) parts_.port_gone();
}

void PairWorker::Serve() {
  if (!serving_) return;
  more_to_send_ = transmitter_.Serve();
  ServeReceiver();
}

}  // namespace bulkhead::device
