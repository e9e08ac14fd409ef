// SPDX-License-Identifier: Apache-2.0
// The runner's end of one device process's exit channel. Called by vCPU threads, one at a time per device: a device
// sees the guest's accesses in one order. Replies are hostile: a device that answers what was not asked, out of
// protocol or not in time is no longer spoken to, and reads of it give all ones.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "ipc/exit_codec.h"
#include "ipc/fd.h"
#include "ipc/ring.h"

namespace bulkhead::runner {

class DeviceChannel {
 public:
  // `failed` is called once, from the vCPU thread that found out, with one line.
  DeviceChannel(std::string name, ChannelMemory* channel, OwnFd doorbell, int64_t deadline_ns, int64_t spin_ns,
                std::function<void(const std::string&)> failed);

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
  Result<void> Send(const ExitRequest& request, Deadline deadline);
  Result<ExitReply> Exchange(ExitRequest request);
  void Fail(const Error& error);

  std::string name_;
  ChannelMemory* channel_;
  OwnFd doorbell_;
  int64_t deadline_ns_;
  std::function<void(const std::string&)> report_;
  std::atomic<bool> failed_ = false;

  std::mutex mutex_;  // guards all below
  RingProducer requests_;
  RingConsumer replies_;
  AdaptiveSpin spin_;
  uint32_t sequence_ = 0;
};

}  // namespace bulkhead::runner
