// SPDX-License-Identifier: Apache-2.0
// The runner's end of one device process's exit channel. Called by vCPU threads, one at a time per device: a device
// sees the guest's accesses in one order. Replies are hostile: a device that answers what was not asked, out of
// protocol or not in time is no longer spoken to, and reads of it give all ones. Where its process may be replaced,
// what has waited until the deadline waits on, and the successor answers it.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "ipc/exit_codec.h"
#include "ipc/fd.h"
#include "ipc/ring.h"

namespace bulkhead::runner {

// How long a vCPU waits for a device.
struct ChannelPatience {
  int64_t deadline_ns = 0;
  int64_t extra_ns = 0;  // after the deadline, for a successor; 0: there will be none
  int64_t spin_ns = 0;   // of all that, awake
};

// What the runner tells the broker of a device, from the vCPU thread that found out.
struct ChannelEvents {
  std::function<void(const std::string&)> failed;  // once, with one line: no longer spoken to
  std::function<void()> late = {};                 // the deadline has passed, and there is more patience
};

class DeviceChannel {
 public:
  DeviceChannel(std::string name, ChannelMemory* channel, OwnFd doorbell, ChannelPatience patience,
                ChannelEvents events);

  // The value read; all ones from a failed device.
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width);
  // Writes and waits: the reply may carry an effect; an empty reply from a failed device.
  ExitReply Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value);
  // Writes without waiting.
  void Post(uint16_t region, uint64_t offset, uint8_t width, uint64_t value);

  // The broker says that the device process is gone: whoever waits for it is let go. Any thread.
  void MarkDead();
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  const std::string& name() const { return name_; }

 private:
  Result<void> Send(const ExitRequest& request);
  Result<ExitReply> Exchange(ExitRequest request);
  template <typename Wait>
  Result<void> Patiently(Wait wait);
  void Fail(const Error& error);

  std::string name_;
  ChannelMemory* channel_;
  OwnFd doorbell_;
  const ChannelPatience patience_;
  const ChannelEvents events_;
  std::atomic<bool> failed_ = false;

  std::mutex mutex_;  // guards all below
  RingProducer requests_;
  RingConsumer replies_;
  AdaptiveSpin spin_;
  uint32_t sequence_ = 0;
};

}  // namespace bulkhead::runner
