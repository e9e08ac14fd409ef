// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_worker.h"

#include <unistd.h>

#include <string>

namespace bulkhead::device {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

}  // namespace

// A watched eventfd. Its count is never read: what is written to it only has to wake the thread.
class QueueWorker::Watch final : public IoRing::Operation {
 public:
  Watch(IoRing& ring, unsigned file) : ring_(ring), file_(file) { ring_.Watch(file_, *this); }
  void Completed(int32_t, bool more) override {
    if (!more) ring_.Watch(file_, *this);
  }

 private:
  IoRing& ring_;
  const unsigned file_;
};

struct QueueWorker::Engine {
  // Besides the requests, two watches are outstanding all the time.
  explicit Engine(const QueueWorkerParts& parts) : ring(parts.queue_size + 2u) {}

  IoRing ring;
  std::unique_ptr<BlockChannel> channel;
  std::unique_ptr<QueueServer> server;
  std::unique_ptr<Watch> kicks;
  std::unique_ptr<Watch> commands;
  bool serving = false;   // the server has a session
  bool draining = false;  // it takes no more chains
};

QueueWorker::QueueWorker(const GuestMemory& memory, BlockImage& image, QueueWorkerParts parts)
    : memory_(memory), image_(image), parts_(std::move(parts)), command_event_(OrThrow(MakeEventFd())) {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  const int error = ::pthread_create(&thread_, &attributes, Enter, this);
  ::pthread_attr_destroy(&attributes);
  if (error != 0) throw FatalError(ErrnoError(error, "start a disk queue's thread"));
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_; });
  if (failure_ == nullptr) return;
  lock.unlock();
  ::pthread_join(thread_, nullptr);
  std::rethrow_exception(failure_);
}

QueueWorker::~QueueWorker() {
  {
    std::lock_guard lock(mutex_);
    command_ = Command::kExit;
  }
  SignalEventFd(command_event_.get());
  ::pthread_join(thread_, nullptr);
}

void QueueWorker::Start(const QueueSession& session) {
  {
    std::lock_guard lock(mutex_);
    command_ = Command::kServe;
    session_ = session;
    stopped_ = false;
  }
  SignalEventFd(command_event_.get());
}

void QueueWorker::RequestStop() {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    command_ = Command::kStop;
  }
  SignalEventFd(command_event_.get());
}

void QueueWorker::WaitStopped() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopped_; });
}

void QueueWorker::Look() { SignalEventFd(command_event_.get()); }

void* QueueWorker::Enter(void* worker) {
  static_cast<QueueWorker*>(worker)->Run();
  return nullptr;
}

void QueueWorker::SetUp() {
  auto engine = std::make_unique<Engine>(parts_);
  engine->channel = image_.OpenChannel(engine->ring);
  const unsigned kicks = engine->ring.AddFile(parts_.kick_fd);
  const unsigned commands = engine->ring.AddFile(command_event_.get());
  engine->ring.Enable();
  engine->kicks = std::make_unique<Watch>(engine->ring, kicks);
  engine->commands = std::make_unique<Watch>(engine->ring, commands);
  engine->server = std::make_unique<QueueServer>(memory_, *engine->channel, parts_.disk_id, parts_.queue_size,
                                                 parts_.log);
  engine_ = std::move(engine);
}

void QueueWorker::Run() {
  ::pthread_setname_np(::pthread_self(), ("queue" + std::to_string(parts_.index)).c_str());
  std::exception_ptr failure;
  try {
    SetUp();
  } catch (...) {
    failure = std::current_exception();
  }
  {
    std::lock_guard lock(mutex_);
    failure_ = failure;
    ready_ = true;
    changed_.notify_all();
  }
  if (failure != nullptr) return;
  while (TakeCommand()) {
    // Where the driver fills the queue as fast as it is emptied, completions, interrupts and commands come in between.
    const bool more = engine_->serving && !engine_->draining && engine_->server->TakeChains();
    if (engine_->serving) engine_->server->SignalCompletions();
    if (engine_->draining && engine_->server->in_flight() == 0) {
      SayStopped();
      continue;
    }
    if (auto reaped = engine_->ring.SubmitAndReap(/*wait=*/!more); !reaped.ok()) {
      // Nothing can complete any more, and the device thread would wait for it: the broker replaces the process.
      parts_.log(reaped.error().message);
      ::_exit(1);
    }
  }
  engine_.reset();
}

bool QueueWorker::TakeCommand() {
  std::lock_guard lock(mutex_);
  if (command_ == Command::kExit) return false;
  if (stopped_) return true;
  // A session that was stopped before this thread saw it is begun all the same: its stop then has one way only.
  if (!engine_->serving) {
    engine_->server->Start(session_);
    engine_->serving = true;
  }
  engine_->draining = command_ == Command::kStop;
  return true;
}

void QueueWorker::SayStopped() {
  engine_->server->End();
  engine_->serving = engine_->draining = false;
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace bulkhead::device
