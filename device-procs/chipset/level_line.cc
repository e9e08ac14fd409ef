// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/level_line.h"

#include <sys/epoll.h>

#include <utility>

namespace bulkhead::chipset {

LevelLine::LevelLine(device::EventLoop& loop, OwnFd assert_fd, OwnFd resample_fd)
    : loop_(loop), assert_(std::move(assert_fd)), resample_(std::move(resample_fd)) {
  if (resample_.valid()) loop_.Watch(resample_.get(), EPOLLIN, [this] { Resampled(); });
}

LevelLine::~LevelLine() {
  if (resample_.valid()) loop_.Unwatch(resample_.get());
}

void LevelLine::Set(bool level) {
  const bool rises = level && !level_;
  level_ = level;
  if (rises) Signal();
}

void LevelLine::Resume() {
  paused_ = false;
  if (level_) Signal();
}

void LevelLine::Signal() {
  if (!paused_) SignalEventFd(assert_.get());
}

void LevelLine::Resampled() {
  DrainEventFd(resample_.get());
  if (level_) Signal();
}

}  // namespace bulkhead::chipset
