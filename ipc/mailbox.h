// SPDX-License-Identifier: Apache-2.0
// Work handed from any thread to the control plane's event loop on the main thread, without waiting for it.
#pragma once

#include <kj/async-unix.h>

#include <functional>
#include <mutex>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead {

class Mailbox {
 public:
  // Main thread, before lock-down.
  explicit Mailbox(kj::UnixEventPort& port)
      : raised_(OrThrow(MakeEventFd())), observer_(port, raised_.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ) {}

  // Any thread.
  void Post(std::function<void()> letter) {
    {
      std::lock_guard lock(mutex_);
      letters_.push_back(std::move(letter));
    }
    SignalEventFd(raised_.get());
  }

  // Runs letters as they come, on the main thread; never resolves.
  kj::Promise<void> Serve() {
    return observer_.whenBecomesReadable().then([this] {
      DrainEventFd(raised_.get());
      std::vector<std::function<void()>> letters;
      {
        std::lock_guard lock(mutex_);
        letters.swap(letters_);
      }
      for (const auto& letter : letters) letter();
      return Serve();
    });
  }

 private:
  OwnFd raised_;
  kj::UnixEventPort::FdObserver observer_;
  std::mutex mutex_;
  std::vector<std::function<void()>> letters_;
};

}  // namespace bulkhead
