// SPDX-License-Identifier: Apache-2.0
// The thread of one pair of queues: waits for kicks, packets and its commands in a loop of its own, and serves both
// directions in turns. Made on the main thread before lock-down; all calls come from the device thread.
#pragma once

#include <functional>
#include <string>

#include "device-procs/common/device_thread.h"
#include "device-procs/net/queue_pair.h"
#include "device-procs/net/receiver.h"
#include "device-procs/net/transmitter.h"

namespace bulkhead::device {

struct PairWorkerParts {
  uint16_t index = 0;
  const GuestMemory* memory = nullptr;
  NetPort* port = nullptr;
  const SourceGuard* guard = nullptr;
  Throttle* receive_throttle = nullptr;  // of all pairs together
  Throttle* transmit_throttle = nullptr;
  int receive_kick = -1;  // eventfds
  int transmit_kick = -1;
  // Called on the pair's thread. A kick of the receive queue while the pair is not served may be meant for another
  // queue of that number; the outside may be gone.
  std::function<void()> stray_kick;
  std::function<void()> port_gone;
  Transmitter::Log log;
};

class PairWorker final : public QueuePair, private Poller {
 public:
  // What it is given by pointer outlives it. Throws FatalError.
  explicit PairWorker(PairWorkerParts parts);
  ~PairWorker() override;

  void Start(VirtioTransport& transport, uint64_t features) override;
  void Stop() override;
  void SetLink(bool up) override;
  void SetCoalescing(const CoalesceLimits& receive, const CoalesceLimits& transmit) override;
  void SetFilter(const ReceiveFilter& filter) override;
  unsigned AskPulse() override { return thread_.AskPulse(); }

  const NetCounters* received() const override { return &receiver_.counters(); }
  const NetCounters* sent() const override { return &transmitter_.counters(); }

 private:
  void Drain() override;
  bool PrepareToSleep() override;
  int SleepMs() override;
  void SetAlarm();
  void ServeReceiver();
  void Serve();

  const PairWorkerParts parts_;
  Receiver receiver_;
  Transmitter transmitter_;
  bool serving_ = false;
  bool more_to_receive_ = false;
  bool more_to_send_ = false;
  bool told_gone_ = false;
  OwnFd alarm_;            // a timerfd
  uint64_t alarm_ns_ = 0;  // what it was set to last
  EventLoop loop_;
  DeviceThread thread_;  // last: it uses the rest
};

}  // namespace bulkhead::device
