// SPDX-License-Identifier: Apache-2.0
// Time sources and timers of the chipset models. Chipset process, device thread. Clocks are functions so that
// a test owns the time.
#pragma once

#include <time.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "device-procs/common/event_loop.h"
#include "ipc/fd.h"

namespace bulkhead::chipset {

using Clock = std::function<int64_t()>;  // nanoseconds

inline constexpr int64_t kNsPerSecond = 1'000'000'000;

int64_t RealtimeNs();  // since the epoch, UTC
int64_t MonotonicNs();

// One timerfd, made before lock-down. The handler runs at or after the time asked for, and now and then for
// nothing: it looks at its clock and arms again.
class Timer {
 public:
  // CLOCK_REALTIME timers also run their handler when the host's clock is set.
  Timer(device::EventLoop& loop, clockid_t clock, std::function<void()> handler);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Absolute, in the clock of construction; nullopt disarms. An idle VM has no armed timer.
  void Arm(std::optional<int64_t> at_ns);
  std::optional<int64_t> armed_at_ns() const { return at_ns_; }

 private:
  device::EventLoop& loop_;
  OwnFd fd_;
  bool cancel_on_set_;
  std::optional<int64_t> at_ns_;
};

}  // namespace bulkhead::chipset
