// SPDX-License-Identifier: Apache-2.0
// Serves one virtqueue from one channel: takes chains, carries out what they ask, gives each back exactly once. Knows
// no thread; its queue's worker drives it. Chains are the guest's: hostile.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/throttle.h"
#include "device-procs/common/virtio_device.h"
#include "device-procs/disk/request.h"

namespace bulkhead::device {

// One period between activation and deactivation, or resume and pause.
struct QueueSession {
  Virtqueue* queue = nullptr;
  VirtioTransport* transport = nullptr;
  uint16_t index = 0;
  RequestRules rules;
  // Whether the driver wants writes to be durable when they complete (§5.2.6.2); it may change its mind at any time.
  const std::atomic<bool>* write_through = nullptr;
};

class QueueServer {
 public:
  using Log = std::function<void(const std::string&)>;

  // `queue_size` bounds what is in flight. Memory, channel and throttle outlive it.
  QueueServer(const GuestMemory& memory, BlockChannel& channel, Throttle& throttle, const std::string& disk_id,
              uint16_t queue_size, Log log);
  ~QueueServer();

  void Start(const QueueSession& session);
  // Takes chains until there are none, as many are in flight as may be, or it is time to look at other things: then
  // true, and the caller comes back soon. Kicks are not asked for.
  bool TakeChains();
  // Whether TakeChains would take one: a look at memory, for who waits without sleeping.
  bool HasChains() const { return TakesChains() && session_.queue->HasChains(); }
  // Asks for a kick at the next chain, unless something else leads back to TakeChains; true if one is there already.
  bool EnableKicks();
  // How long the throttle keeps it from taking the next chain, as TakeChains found; 0: it does not. The caller comes
  // back after that time, or sooner.
  uint64_t throttled_ns() const { return throttled_ns_; }
  // One interrupt decision for all that was given back since the last.
  void SignalCompletions();
  // The driver waits for its reset and for none of its requests: what has not been started of them is not.
  void Abandon() { abandoned_ = true; }
  // Forgets the session; nothing is in flight.
  void End();

  uint16_t in_flight() const { return in_flight_; }

 private:
  class Request;
  // Requests of a batch that lie behind each other on the disk, and go there as one.
  struct Run {
    Request* first = nullptr;
    Request* last = nullptr;
    uint64_t end_bytes = 0;  // on the disk
    uint64_t size_bytes = 0;
  };

  bool TakesChains() const { return !broken_ && throttled_ns_ == 0 && !free_.empty(); }
  bool TakeBatch();
  void Begin(Request& request);
  void Charge(const DiskRequest& request);
  void Gather(Request& request);
  void BeginRun();
  void BeginTransfer(Request& first);
  void NextSegment(Request& request);
  void Continue(Request& first, int error);
  void Failed(Request& first, int error);
  void FinishRun(Request& first, RequestStatus status);
  void Finish(Request& request, RequestStatus status);
  void LogFailure(const Request& request, int error);
  void Break();

  const GuestMemory& memory_;
  BlockChannel& channel_;
  Throttle& throttle_;
  std::array<char, kDiskIdBytes> disk_id_{};
  Log log_;
  QueueSession session_;
  bool broken_ = false;  // the driver broke the queue: nothing more is taken from it
  bool abandoned_ = false;
  bool given_back_ = false;
  uint64_t throttled_ns_ = 0;
  uint16_t in_flight_ = 0;
  Run run_;  // not begun yet; empty outside TakeChains
  std::vector<std::unique_ptr<Request>> requests_;
  std::vector<Request*> free_;
};

}  // namespace bulkhead::device
