// SPDX-License-Identifier: Apache-2.0
// The device thread's loop: waits on file descriptors and runs their handlers, one at a time. Watch and Unwatch are
// called on the device thread or before it runs; Stop from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "ipc/fd.h"

namespace bulkhead::device {

// Something the loop looks at without a descriptor: the exit ring's consumer.
class Poller {
 public:
  virtual ~Poller() = default;
  // Does what is there now. Called before the handlers of each round, so that register writes posted before a kick are
  // seen before the kick.
  virtual void Drain() = 0;
  // Handlers of this round have run.
  virtual void HandlersRan() {}
  // The thread is about to sleep: true if it may (a producer that finds it asleep then wakes a watched descriptor).
  virtual bool PrepareToSleep() = 0;
  // For how long at most, in milliseconds; -1: until something happens.
  virtual int SleepMs() { return -1; }
};

class EventLoop {
 public:
  EventLoop();  // throws FatalError: before lock-down

  // Runs `handler` whenever `fd` is ready for `events` (EPOLLIN, EPOLLOUT; level-triggered unless EPOLLET is given).
  // The fd stays the caller's and is unwatched before it is closed. Without a handler it only ends a sleep.
  void Watch(int fd, uint32_t events, std::function<void()> handler);
  // Changes what is waited for; 0 keeps the handler but waits for nothing but errors.
  void SetEvents(int fd, uint32_t events);
  void Unwatch(int fd);

  void SetPoller(Poller* poller) { poller_ = poller; }

  void Run();   // until Stop
  void Stop();  // wakes the loop and makes Run return

 private:
  OwnFd epoll_;
  OwnFd stop_;
  Poller* poller_ = nullptr;
  // A handler may unwatch itself or others, so the loop holds the one it runs.
  std::unordered_map<int, std::shared_ptr<std::function<void()>>> handlers_;
};

}  // namespace bulkhead::device
