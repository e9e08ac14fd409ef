// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/work_pool.h"

#include <sched.h>

#include <algorithm>
#include <string>

namespace bulkhead::device {
namespace {

// Compression libraries keep their tables on the heap; the sanitizers' frames fit as well.
constexpr size_t kStackBytes = 256 * 1024;

unsigned Processors() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<unsigned>(CPU_COUNT(&set)) : 1;
}

}  // namespace

WorkPool::WorkPool(IoRing& ring, unsigned most)
    : finished_event_(OrThrow(MakeEventFd())), news_(*this, ring, finished_event_.get()) {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  int error = 0;
  for (unsigned left = std::clamp(Processors(), 1u, most); error == 0 && left != 0; --left) {
    pthread_t thread;
    error = ::pthread_create(&thread, &attributes, Enter, this);
    if (error == 0) threads_.push_back(thread);
  }
  ::pthread_attr_destroy(&attributes);
  if (error != 0) {
    StopThreads();
    throw FatalError(ErrnoError(error, "start a disk's helper thread"));
  }
  // A new thread's own start-up calls must be behind it when the filter closes.
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return named_ == threads_.size(); });
}

WorkPool::~WorkPool() { StopThreads(); }

void WorkPool::StopThreads() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (const pthread_t thread : threads_) ::pthread_join(thread, nullptr);
}

void WorkPool::Start(Job& job) {
  // Not sooner: the ring was not enabled yet.
  if (!std::exchange(armed_, true)) news_.Arm();
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(&job);
  }
  changed_.notify_one();
}

void* WorkPool::Enter(void* pool) {
  static_cast<WorkPool*>(pool)->Work();
  return nullptr;
}

void WorkPool::Work() {
  std::unique_lock lock(mutex_);
  // By the thread itself: naming another one takes /proc, which is not there.
  ::pthread_setname_np(::pthread_self(), ("helper" + std::to_string(named_)).c_str());
  ++named_;
  changed_.notify_all();
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    Job* const job = waiting_.front();
    waiting_.pop_front();
    lock.unlock();
    job->Compute();
    lock.lock();
    finished_.push_back(job);
    // Whoever takes the first takes the others as well.
    if (finished_.size() == 1) SignalEventFd(finished_event_.get());
  }
}

// The event's count is never read: every write wakes a watch anew, and a watch that the kernel ended becomes due again
// at once, which costs one look too many and misses none.
void WorkPool::News::Completed(int32_t, bool more) {
  if (!more) Arm();
  std::vector<Job*> finished;
  {
    std::lock_guard lock(owner_.mutex_);
    finished.swap(owner_.finished_);
  }
  for (Job* const job : finished) job->Completed();
}

}  // namespace bulkhead::device
