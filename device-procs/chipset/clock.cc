// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/clock.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>

namespace bulkhead::chipset {
namespace {

int64_t Now(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * kNsPerSecond + now.tv_nsec;
}

}  // namespace

int64_t RealtimeNs() { return Now(CLOCK_REALTIME); }
int64_t MonotonicNs() { return Now(CLOCK_MONOTONIC); }

Timer::Timer(device::EventLoop& loop, clockid_t clock, std::function<void()> handler)
    : loop_(loop), fd_(::timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC)), cancel_on_set_(clock == CLOCK_REALTIME) {
  if (!fd_.valid()) ThrowErrno("create a timer");
  loop_.Watch(fd_.get(), EPOLLIN, [this, handler = std::move(handler)] {
    // Fails with ECANCELED when the clock was set, which is as good a reason to look at it.
    uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t got = ::read(fd_.get(), &expirations, sizeof expirations);
    at_ns_.reset();
    handler();
  });
}

Timer::~Timer() { loop_.Unwatch(fd_.get()); }

void Timer::Arm(std::optional<int64_t> at_ns) {
  if (at_ns == at_ns_) return;
  at_ns_ = at_ns;
  itimerspec when{};
  if (at_ns) {
    // A zero time would disarm.
    const int64_t at = std::max<int64_t>(*at_ns, 1);
    when.it_value = {.tv_sec = at / kNsPerSecond, .tv_nsec = at % kNsPerSecond};
  }
  ::timerfd_settime(fd_.get(), TFD_TIMER_ABSTIME | (cancel_on_set_ ? TFD_TIMER_CANCEL_ON_SET : 0), &when, nullptr);
}

}  // namespace bulkhead::chipset
