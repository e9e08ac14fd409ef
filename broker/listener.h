// SPDX-License-Identifier: Apache-2.0
// Accepts connections on a listening UNIX socket. Broker, main thread. Whoever connects is hostile.
#pragma once

#include <kj/async-unix.h>

#include <functional>

#include "ipc/fd.h"

namespace bulkhead::broker {

class Listener {
 public:
  // Before lock-down. Calls `accepted` with each connection whose peer runs as this process's user or as root, from
  // Serve on.
  Listener(kj::UnixEventPort& port, OwnFd socket, std::function<void(OwnFd)> accepted);

  void Serve() {
    task_ = Accept().eagerlyEvaluate([](kj::Exception&&) {});
  }
  int socket() const { return socket_.get(); }

 private:
  kj::Promise<void> Accept();

  OwnFd socket_;
  kj::UnixEventPort::FdObserver observer_;
  std::function<void(OwnFd)> accepted_;
  const uid_t own_uid_;
  kj::Promise<void> task_;
};

}  // namespace bulkhead::broker
