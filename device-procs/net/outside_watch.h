// SPDX-License-Identifier: Apache-2.0
// Looks now and then whether a back end's outside is gone, where nobody in this process takes packets from it: the
// kernel tells of a tap's end as it tells of packets only, and to wait for those would cost a wake-up for each. Device
// thread.
#pragma once

#include <functional>

#include "device-procs/common/event_loop.h"
#include "device-procs/net/backend.h"

namespace bulkhead::device {

class OutsideWatch {
 public:
  // Before lock-down; throws FatalError. `gone` is called once. Loop and back end outlive it.
  OutsideWatch(EventLoop& loop, NetBackend& backend, std::function<void()> gone);
  ~OutsideWatch();

 private:
  EventLoop& loop_;
  OwnFd timer_;
};

}  // namespace bulkhead::device
