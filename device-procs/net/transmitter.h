// SPDX-License-Identifier: Apache-2.0
// Carries packets from a transmit queue to its port. The pair's thread. Chains and all that is in them are the guest's:
// hostile; headers are checked, and sent, as a private copy.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "device-procs/common/throttle.h"
#include "device-procs/net/backend.h"
#include "device-procs/net/counters.h"
#include "device-procs/net/net_queue.h"
#include "device-procs/net/notifier.h"
#include "device-procs/net/source_guard.h"

namespace bulkhead::device {

class Transmitter {
 public:
  using Log = std::function<void(const std::string&)>;

  // All outlive it.
  Transmitter(const GuestMemory& memory, NetPort& port, const SourceGuard& guard, Throttle& throttle, Log log);

  void Start(NetQueue queue, uint64_t features);
  void End();
  // Down: what the driver sends is lost.
  void SetLink(bool up) { link_up_ = up; }

  // Sends what there is, as much as may be at a time; true if there is more. Kicks are not asked for.
  bool Serve();
  // Asks for a kick at the next packet, unless the throttle or the port is what holds back; true if there is one
  // already.
  bool EnableKicks() { return throttled_ns_ == 0 && !blocked_ && queue_.EnableKicks(); }
  // How long the throttle keeps it from the next packet, as Serve found.
  uint64_t throttled_ns() const { return throttled_ns_; }
  void SetCoalescing(const CoalesceLimits& limits) { notifier_.SetLimits(limits); }
  // When Serve has to be called again for an interrupt that is held back, by Throttle's clock; 0: it need not.
  uint64_t notification_due_ns() const { return notifier_.due_ns(); }
  // The port's outside is gone.
  bool gone() const { return gone_; }
  const NetCounters& counters() const { return counters_; }

 private:
  bool Send(const Chain& chain);
  void Refuse();

  const GuestMemory& memory_;
  NetPort& port_;
  const SourceGuard& guard_;
  Throttle& throttle_;
  const Log log_;
  NetQueue queue_;
  Notifier notifier_{queue_};
  Offloads offloads_;
  bool link_up_ = true;
  uint64_t throttled_ns_ = 0;
  bool blocked_ = false;  // until the port has room
  bool gone_ = false;
  bool told_ = false;  // of a packet that was refused
  NetCounters counters_;
  Chain chain_;
  std::vector<iovec> vectors_;
};

}  // namespace bulkhead::device
