// SPDX-License-Identifier: Apache-2.0
// Tells which forbidden system call a process made. Its filter leaves such a call waiting and never lets it be made;
// the broker, who has the filter's listener, learns of it here and kills the process. Broker, main thread. What the
// listener tells comes from the kernel.
#pragma once

#include <kj/async-unix.h>

#include <string>

#include "ipc/fd.h"

namespace bulkhead::broker {

// Whether this broker may take a child's filter listener; if not, the kernel itself kills on a violation.
bool CanWatchViolations(const OwnFd& pidfd);

class ViolationWatch {
 public:
  // Takes descriptor `listener` of the child, which is its word: an Error unless it is a filter's listener.
  static Result<OwnFd> TakeListener(int pidfd, int listener);

  ViolationWatch(kj::UnixEventPort& port, OwnFd listener);
  // Resolves with "openat(0xffffff9c, 0x7ffd..., ...)" on the first forbidden call; the calling thread stays in it.
  kj::Promise<std::string> First();

 private:
  OwnFd listener_;
  kj::UnixEventPort::FdObserver observer_;
};

}  // namespace bulkhead::broker
