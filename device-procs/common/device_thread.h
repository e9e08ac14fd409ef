// SPDX-License-Identifier: Apache-2.0
// The device thread and the way the control thread reaches it. Built on the main thread before lock-down.
#pragma once

#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "device-procs/common/event_loop.h"

namespace bulkhead::device {

class DeviceThread {
 public:
  // `loop` is complete but for the mailbox; the thread starts in Start.
  explicit DeviceThread(EventLoop& loop);
  ~DeviceThread();

  void Start();
  // Runs `work` on the device thread and returns when it is done. Main thread.
  void Call(const std::function<void()>& work);

 private:
  void RunMailbox();

  EventLoop& loop_;
  OwnFd mail_;
  std::mutex mutex_;
  std::vector<std::function<void()>> mailbox_;
  std::thread thread_;
};

}  // namespace bulkhead::device
