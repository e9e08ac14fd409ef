// SPDX-License-Identifier: Apache-2.0
// The device thread, or another that a device has a loop for, and the way other threads reach it. Built on the main
// thread before lock-down.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device-procs/common/event_loop.h"
#include "device-procs/common/pulse.h"

namespace bulkhead::device {

class DeviceThread {
 public:
  // `loop` is complete but for the mailbox; the thread starts in Start.
  explicit DeviceThread(EventLoop& loop, std::string name = "device");
  ~DeviceThread();

  void Start();
  // Runs `work` on the thread and returns when it is done. Another thread, which this one never waits for.
  void Call(const std::function<void()>& work);
  // Asks it for a sign of life; see Pulse. One thread always, which does not wait.
  unsigned AskPulse() { return pulse_.Ask(mail_); }

 private:
  void RunMailbox();

  EventLoop& loop_;
  const std::string name_;
  OwnFd mail_;
  Pulse pulse_;
  std::mutex mutex_;
  std::vector<std::function<void()>> mailbox_;
  std::thread thread_;
};

}  // namespace bulkhead::device
