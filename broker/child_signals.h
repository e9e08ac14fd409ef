// SPDX-License-Identifier: Apache-2.0
// Tells when the state of some child process changed: stopped, say, which its pidfd does not tell. Broker, main thread.
#pragma once

#include <kj/async-unix.h>

#include "ipc/fd.h"

namespace bulkhead::broker {

class ChildSignals {
 public:
  // Blocks SIGCHLD in this thread for good. At most one exists.
  explicit ChildSignals(kj::UnixEventPort& port);
  // Resolves after the next change, or several.
  kj::Promise<void> Next();

 private:
  OwnFd signals_;
  kj::UnixEventPort::FdObserver observer_;
};

}  // namespace bulkhead::broker
