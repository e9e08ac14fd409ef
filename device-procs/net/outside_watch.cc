// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/outside_watch.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <utility>

namespace bulkhead::device {
namespace {

constexpr time_t kPeriodSeconds = 1;

}  // namespace

OutsideWatch::OutsideWatch(EventLoop& loop, NetBackend& backend, std::function<void()> gone)
    : loop_(loop), timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
  const timespec period{.tv_sec = kPeriodSeconds, .tv_nsec = 0};
  const itimerspec times{.it_interval = period, .it_value = period};
  if (!timer_.valid() || ::timerfd_settime(timer_.get(), 0, &times, nullptr) != 0) ThrowErrno("make a timer");
  loop_.Watch(timer_.get(), EPOLLIN, [this, &backend, gone = std::move(gone), told = false]() mutable {
    // As an eventfd: the count of periods that are over.
    DrainEventFd(timer_.get());
    if (!told && backend.IsGone()) {
      told = true;
      gone();
    }
  });
}

OutsideWatch::~OutsideWatch() { loop_.Unwatch(timer_.get()); }

}  // namespace bulkhead::device
