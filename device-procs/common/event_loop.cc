// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/event_loop.h"

#include <sys/epoll.h>

#include <array>

namespace bulkhead::device {

EventLoop::EventLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), stop_(OrThrow(MakeEventFd())) {
  if (!epoll_.valid()) ThrowErrno("create an epoll instance");
  epoll_event event{.events = EPOLLIN, .data = {.fd = stop_.get()}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &event) != 0) ThrowErrno("watch the stop event");
}

void EventLoop::Watch(int fd, uint32_t events, std::function<void()> handler) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  // A regular file cannot be polled (EPERM): it is always ready, and its owner needs no events to use it.
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno != EPERM) ThrowErrno("watch a descriptor");
  handlers_[fd] = std::make_shared<std::function<void()>>(std::move(handler));
}

void EventLoop::SetEvents(int fd, uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void EventLoop::Unwatch(int fd) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  handlers_.erase(fd);
}

void EventLoop::Run() {
  std::array<epoll_event, 16> events;
  for (;;) {
    // With work in the poller the descriptors are only looked at: neither may keep the other waiting.
    const bool may_sleep = poller_ == nullptr || poller_->PrepareToSleep();
    bool stopped = false, handled = false;
    const int sleep_ms = !may_sleep ? 0 : poller_ == nullptr ? -1 : poller_->SleepMs();
    const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), sleep_ms);
    if (poller_ != nullptr) poller_->Drain();
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == stop_.get()) {
        // The round is finished first: a one-shot event that was reported with it would be lost.
        DrainEventFd(stop_.get());
        stopped = true;
        continue;
      }
      // Unwatched by an earlier handler of this round: its event is stale.
      const auto found = handlers_.find(fd);
      if (found == handlers_.end()) continue;
      const auto handler = found->second;
      if (!*handler) continue;
      (*handler)();
      handled = true;
    }
    if (handled && poller_ != nullptr) poller_->HandlersRan();
    if (stopped) return;
  }
}

void EventLoop::Stop() { SignalEventFd(stop_.get()); }

}  // namespace bulkhead::device
