// SPDX-License-Identifier: Apache-2.0
// A level-triggered interrupt line over a pair of eventfds, as KVM's resampling irqfd has it (api.rst §4.75):
// a signal on the first raises the line; when the guest ends the interrupt KVM lowers the line and signals
// the second, and the device raises it again while it still has cause. Device thread.
#pragma once

#include "device-procs/common/event_loop.h"
#include "ipc/fd.h"

namespace bulkhead::chipset {

class LevelLine {
 public:
  // A fresh line is low and paused.
  LevelLine(device::EventLoop& loop, OwnFd assert_fd, OwnFd resample_fd);
  ~LevelLine();
  LevelLine(const LevelLine&) = delete;
  LevelLine& operator=(const LevelLine&) = delete;

  void Set(bool level);
  bool level() const { return level_; }

  // Paused, the line signals nothing; on resumption a level that is up is signalled.
  void Pause() { paused_ = true; }
  void Resume();

 private:
  void Signal();
  void Resampled();

  device::EventLoop& loop_;
  OwnFd assert_;
  OwnFd resample_;
  bool level_ = false;
  bool paused_ = true;
};

}  // namespace bulkhead::chipset
