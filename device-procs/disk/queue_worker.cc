// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_worker.h"

#include <unistd.h>

namespace bulkhead::device {
namespace {

// Deepest here is the log; the sanitizers' frames fit as well.
constexpr size_t kStackBytes = 256 * 1024;
// Operations beside the queue's requests: the watches of kicks and commands.
constexpr unsigned kWatches = 2;

}  // namespace

// Becomes due whenever its eventfd is written. The count is never read: every write wakes a watch anew, and a watch
// that the kernel ended becomes due again at once, which costs one look too many and misses none.
class QueueWorker::Watch final : public IoRing::Operation {
 public:
  Watch(IoRing& ring, int fd) : ring_(ring), file_(ring.AddFile(fd)) {}

  void Arm() { ring_.Watch(file_, *this); }
  void Completed(int32_t, bool more) override {
    due_ = true;
    if (!more) Arm();
  }
  bool TakeDue() { return std::exchange(due_, false); }

 private:
  IoRing& ring_;
  const unsigned file_;
  bool due_ = false;
};

struct QueueWorker::Engine {
  Engine(const GuestMemory& memory, BlockImage& image, const QueueWorkerParts& parts, int command_event)
      : ring(parts.queue_size + kWatches),
        kicks(ring, parts.kick_fd),
        commands(ring, command_event),
        channel(image.OpenChannel(ring)),
        server(memory, *channel, parts.disk_id, parts.queue_size, parts.log) {}

  IoRing ring;
  Watch kicks;
  Watch commands;
  std::unique_ptr<BlockChannel> channel;
  QueueServer server;
  Command command = Command::kStop;
  bool serving = false;  // a session is begun and not yet ended
};

QueueWorker::QueueWorker(const GuestMemory& memory, BlockImage& image, QueueWorkerParts parts)
    : memory_(memory), image_(image), parts_(std::move(parts)), command_event_(OrThrow(MakeEventFd())) {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  const int error = ::pthread_create(&thread_, &attributes, Enter, this);
  ::pthread_attr_destroy(&attributes);
  if (error != 0) throw FatalError(ErrnoError(error, "start a disk queue thread"));
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_; });
  if (!failure_) return;
  lock.unlock();
  ::pthread_join(thread_, nullptr);
  std::rethrow_exception(failure_);
}

QueueWorker::~QueueWorker() {
  RequestStop(true);
  WaitStopped();
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
    session_ = session;
    command_ = Command::kServe;
    stopped_ = false;
  }
  SignalEventFd(command_event_.get());
}

void QueueWorker::RequestStop(bool abandon) {
  {
    std::lock_guard lock(mutex_);
    command_ = abandon ? Command::kAbandon : Command::kStop;
  }
  SignalEventFd(command_event_.get());
}

void QueueWorker::WaitStopped() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopped_; });
}

void* QueueWorker::Enter(void* argument) {
  auto* worker = static_cast<QueueWorker*>(argument);
  std::exception_ptr failure;
  try {
    worker->SetUp();
  } catch (...) {
    failure = std::current_exception();
    worker->engine_.reset();
  }
  {
    std::lock_guard lock(worker->mutex_);
    worker->failure_ = failure;
    worker->ready_ = true;
    worker->changed_.notify_all();
  }
  if (failure) return nullptr;
  worker->Run();
  worker->engine_.reset();
  return nullptr;
}

void QueueWorker::SetUp() {
  // By the thread itself: naming another one takes /proc, which is not there.
  ::pthread_setname_np(::pthread_self(), ("queue" + std::to_string(parts_.index)).c_str());
  engine_ = std::make_unique<Engine>(memory_, image_, parts_, command_event_.get());
  engine_->ring.Enable();
  engine_->kicks.Arm();
  engine_->commands.Arm();
}

void QueueWorker::TakeCommand() {
  std::lock_guard lock(mutex_);
  engine_->command = command_;
  if (command_ == Command::kServe && !engine_->serving) {
    engine_->server.Start(session_);
    engine_->serving = true;
  } else if (command_ == Command::kAbandon) {
    engine_->server.Abandon();
  }
}

void QueueWorker::EndSession() {
  if (std::exchange(engine_->serving, false)) engine_->server.End();
  std::lock_guard lock(mutex_);
  // The next command may already be there; its event is due then.
  if (command_ == Command::kServe || command_ == Command::kExit) return;
  stopped_ = true;
  changed_.notify_all();
}

void QueueWorker::Run() {
  Engine& engine = *engine_;
  bool look_again = false;
  while (engine.command != Command::kExit) {
    if (auto reaped = engine.ring.SubmitAndReap(!look_again); !reaped.ok()) {
      // Requests are lost that the guest waits for, and whose memory the kernel may still write.
      parts_.log(reaped.error().message);
      ::_exit(1);
    }
    look_again = false;
    engine.kicks.TakeDue();
    if (engine.commands.TakeDue()) TakeCommand();
    if (engine.serving) {
      if (engine.command == Command::kServe) look_again = engine.server.TakeChains();
      engine.server.SignalCompletions();
    }
    const bool stopping = engine.command == Command::kStop || engine.command == Command::kAbandon;
    if (stopping && engine.server.in_flight() == 0) EndSession();
  }
}

}  // namespace bulkhead::device
