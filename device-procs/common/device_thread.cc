// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/device_thread.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <future>

namespace bulkhead::device {

DeviceThread::DeviceThread(EventLoop& loop, std::string name)
    : loop_(loop), name_(std::move(name)), mail_(OrThrow(MakeEventFd())) {
  loop_.Watch(mail_.get(), EPOLLIN, [this] { RunMailbox(); });
}

DeviceThread::~DeviceThread() {
  if (!thread_.joinable()) return;
  loop_.Stop();
  thread_.join();
}

void DeviceThread::Start() {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), name_.c_str());  // by itself: naming another thread needs /proc
    loop_.Run();
  });
  // A new thread's own start-up calls (rseq and the like) must be behind it when the filter closes.
  Call([] {});
}

void DeviceThread::Call(const std::function<void()>& work) {
  std::promise<void> done;
  {
    std::lock_guard lock(mutex_);
    mailbox_.push_back([&] {
      work();
      done.set_value();
    });
  }
  SignalEventFd(mail_.get());
  done.get_future().wait();
}

void DeviceThread::RunMailbox() {
  DrainEventFd(mail_.get());
  pulse_.Answer();
  std::vector<std::function<void()>> letters;
  {
    std::lock_guard lock(mutex_);
    letters.swap(mailbox_);
  }
  for (const auto& letter : letters) letter();
}

}  // namespace bulkhead::device
