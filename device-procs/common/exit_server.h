// SPDX-License-Identifier: Apache-2.0
// The device process's end of the exit channel: takes requests from the ring, puts them to the device, answers. Device
// thread. Everything in the ring is hostile; a peer that breaks the protocol ends the process, and the broker with it
// decides what becomes of the device.
#pragma once

#include <vector>

#include "device-procs/common/device_model.h"
#include "device-procs/common/event_loop.h"
#include "device-procs/common/recorder.h"
#include "ipc/exit_codec.h"
#include "ipc/ring.h"

namespace bulkhead::device {

class ExitServer final : public Poller {
 public:
  // `region_sizes` in bytes, in the order of the grants; `broken` is called once, with a line that says why, when the
  // runner broke the protocol. Device and recorder outlive it. One that takes over serves nothing before StartAt.
  ExitServer(ChannelMemory* channel, DeviceModel& device, Recorder& recorder, std::vector<uint64_t> region_sizes,
             int64_t spin_ns, std::function<void(const Error&)> broken);

  // Goes on where a predecessor stood. Its last answer, if there was one, is given again.
  void StartAt(const Recorder::Inheritance& inheritance);

  void Drain() override;
  void HandlersRan() override;
  bool PrepareToSleep() override;

 private:
  Result<bool> ServeOne();
  Result<void> Answer(const ExitRequest& request);
  ExitReply CarryOut(const ExitRequest& request);
  bool InRegion(const ExitRequest& request) const;
  void Commit();

  ChannelMemory* const channel_;
  RingConsumer requests_;
  RingProducer replies_;
  uint32_t replies_given_ = 0;
  Frame last_reply_;
  unsigned uncommitted_ = 0;  // posted writes
  DeviceModel& device_;
  Recorder& recorder_;
  std::vector<uint64_t> region_sizes_;
  AdaptiveSpin spin_;
  std::function<void(const Error&)> broken_;
};

}  // namespace bulkhead::device
