// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/worker_thread.h"

#include <unistd.h>

#include <future>

#include "ipc/child.h"

namespace bulkhead::img {
namespace {

constexpr size_t kStackBytes = 1024 * 1024;
// What a job has outstanding as a rule; more costs only system calls.
constexpr unsigned kOperations = 256;
// That pack and unpack.
constexpr unsigned kMostHelpers = 4;

struct Start {
  std::function<void()> set_up;
  std::function<void()> serve;
  std::promise<void> ready;
};

}  // namespace

class WorkerThread::Wake final : public device::IoRing::Operation {
 public:
  Wake(WorkerThread& owner, int fd) : owner_(owner), file_(owner.ring_->AddFile(fd)) {}
  void Arm() { owner_.ring_->Watch(file_, *this); }
  void Completed(int32_t, bool more) override {
    if (!more) Arm();
    owner_.Begin();
  }

 private:
  WorkerThread& owner_;
  const unsigned file_;
};

WorkerThread::WorkerThread(std::vector<std::unique_ptr<device::ImageChain>>& images, Mailbox& mailbox)
    : chains_(images), mailbox_(mailbox), wake_event_(OrThrow(MakeEventFd())) {
  Start start{[this] { SetUp(); }, [this] { Serve(); }, {}};
  auto ready = start.ready.get_future();
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  const int error = ::pthread_create(&thread, &attributes, Enter, &start);
  ::pthread_attr_destroy(&attributes);
  if (error != 0) throw FatalError(ErrnoError(error, "start the worker thread"));
  ready.get();
}

void* WorkerThread::Enter(void* argument) {
  auto* start = static_cast<Start*>(argument);
  // The start is the maker's, and gone when it has heard.
  const auto serve = start->serve;
  try {
    start->set_up();
    start->ready.set_value();
  } catch (...) {
    start->ready.set_exception(std::current_exception());
    return nullptr;
  }
  serve();
  return nullptr;
}

void WorkerThread::SetUp() {
  ::pthread_setname_np(::pthread_self(), "worker");  // by itself: naming another thread needs /proc
  ring_ = std::make_unique<device::IoRing>(kOperations);
  wake_ = std::make_unique<Wake>(*this, wake_event_.get());
  offload_ = std::make_unique<device::WorkPool>(*ring_, kMostHelpers);
  for (const auto& chain : chains_) opened_.push_back({chain.get(), chain->OpenChannel(*ring_, *offload_)});
  ring_->Enable();
  wake_->Arm();
}

void WorkerThread::Serve() {
  for (;;) {
    const auto reaped = ring_->SubmitAndReap(true);
    if (reaped.ok()) continue;
    LogLine(reaped.error().message);
    ::_exit(1);
  }
}

void WorkerThread::Run(Job job, Done done) {
  {
    std::lock_guard lock(mutex_);
    next_job_ = std::move(job);
    next_done_ = std::move(done);
  }
  progress_.done = 0;
  progress_.total = 0;
  SignalEventFd(wake_event_.get());
}

void WorkerThread::Begin() {
  Done done;
  {
    std::lock_guard lock(mutex_);
    if (!next_job_) return;
    // A coroutine's captures are those of the function that made it: that stays as long as the job runs.
    job_ = std::exchange(next_job_, nullptr);
    done = std::exchange(next_done_, nullptr);
  }
  device::Spawn(job_(), [this, done = std::move(done)](Result<void> result) {
    mailbox_.Post([done, result = std::move(result)] { done(result); });
  });
}

}  // namespace bulkhead::img
