// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_worker.h"

#include <unistd.h>

#include <algorithm>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/work_pool.h"
#include "ipc/ring.h"

namespace bulkhead::device {
namespace {

// Deepest are a format's coroutines, each of which may resume the next, and the log in them; the sanitizers' frames fit
// as well. What is not used costs no memory.
constexpr size_t kStackBytes = 1024 * 1024;
// What a request of a format has outstanding at one time, as a rule: its data, and the tables on the way there.
constexpr unsigned kOperationsOfFormat = 5;

// What a thread looks out for before it sleeps: as long as a fast disk's read takes. QEMU's I/O threads do 32 us.
constexpr int64_t kSpinNs = 50'000;

// That unpack for a disk: enough that one slow cluster does not hold up the next.
constexpr unsigned kHelpers = 2;

// An image that has one channel is one with a format; else each request is one operation. Beside the requests there are
// the watches of each queue's kicks, of the commands and of the helpers, and the alarm.
unsigned OperationsOf(const QueueWorkerParts& parts, const BlockImage& image) {
  const unsigned each = image.max_channels() == 1 ? kOperationsOfFormat : 1;
  const auto queues = static_cast<unsigned>(parts.queues.size());
  return queues * parts.queue_size * each + queues + 3;
}

std::unique_ptr<Offload> MakeOffload(IoRing& ring, const BlockImage& image) {
  // A raw image has nothing to compute.
  if (image.max_channels() != 1) return std::make_unique<InlineOffload>();
  return std::make_unique<WorkPool>(ring, kHelpers);
}

Task<Result<void>> FlushAll(BlockChannel& channel) {
  const int error = co_await FlushOf(channel);
  if (error != 0) co_return ErrnoError(error, "disk image: flush failed");
  co_return Result<void>();
}

}  // namespace

// Wakes the thread after a time. One at a time is under way, and none lasts long: limits may be lifted meanwhile.
class QueueWorker::Alarm final : public IoRing::Operation {
 public:
  explicit Alarm(IoRing& ring) : ring_(ring) {}

  void Set(uint64_t delay_ns) {
    if (std::exchange(under_way_, true)) return;
    delay_ = {.tv_sec = 0, .tv_nsec = static_cast<int64_t>(std::min(delay_ns, kLongestNs))};
    ring_.Sleep(delay_, *this);
  }
  void Completed(int32_t, bool) override { under_way_ = false; }

 private:
  static constexpr uint64_t kLongestNs = 100'000'000;

  IoRing& ring_;
  __kernel_timespec delay_{};
  bool under_way_ = false;
};

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

struct QueueWorker::ServedQueue {
  ServedQueue(const GuestMemory& memory, IoRing& ring, BlockChannel& channel, const QueueWorkerParts& parts,
              const QueueWorkerParts::Queue& queue)
      : index(queue.index),
        kicks(ring, queue.kick_fd),
        server(memory, channel, *parts.throttle, parts.disk_id, parts.queue_size, parts.log) {}

  const uint16_t index;
  Watch kicks;
  QueueServer server;
  bool serving = false;  // a session is begun and not yet ended
};

// All that the queue thread works with. Queue thread.
class QueueWorker::Engine {
 public:
  Engine(const GuestMemory& memory, BlockImage& image, const QueueWorkerParts& parts, int command_event)
      : log_(parts.log),
        ring_(OperationsOf(parts, image)),
        commands_(ring_, command_event),
        alarm_(ring_),
        offload_(MakeOffload(ring_, image)),
        channel_(image.OpenChannel(ring_, *offload_)) {
    for (const auto& queue : parts.queues) {
      queues_.push_back(std::make_unique<ServedQueue>(memory, ring_, *channel_, parts, queue));
    }
    ring_.Enable();
    commands_.Arm();
    for (const auto& queue : queues_) queue->kicks.Arm();
  }

  // One round: waits for something to do, unless the last round left something. True: there may be a new command.
  bool Round() {
    const bool sleep = !look_again_ && !Spin() && !EnableKicks();
    ExitUnless(ring_.SubmitAndReap(sleep));
    return commands_.TakeDue();
  }

  void Take(Command command, std::vector<QueueSession> sessions) {
    command_ = command;
    to_flush_ = command == Command::kSettle && open_;
    for (const auto& queue : queues_) {
      if (command == Command::kAbandon && queue->serving) queue->server.Abandon();
    }
    for (const QueueSession& session : sessions) {
      const auto queue =
          std::find_if(queues_.begin(), queues_.end(), [&](const auto& each) { return each->index == session.index; });
      if (queue == queues_.end() || std::exchange((*queue)->serving, true)) continue;
      (*queue)->server.Start(session);
    }
    if (command == Command::kOpen) StartOpen();
  }

  void ServeQueues() {
    look_again_ = false;
    uint64_t throttled_ns = 0;
    for (const auto& queue : queues_) {
      queue->kicks.TakeDue();
      if (!queue->serving) continue;
      if (Serves(*queue)) {
        if (queue->server.TakeChains()) look_again_ = true;
        throttled_ns = std::max(throttled_ns, queue->server.throttled_ns());
      }
      queue->server.SignalCompletions();
    }
    if (throttled_ns != 0) alarm_.Set(throttled_ns);
  }

  // Whether what the command asks for is done, other than serving, which has no end.
  bool CarriedOut() {
    if (command_ == Command::kServe || command_ == Command::kNone) return false;
    if (std::any_of(queues_.begin(), queues_.end(), [](const auto& each) { return each->server.in_flight() != 0; })) {
      return false;
    }
    if (!working_ && std::exchange(to_flush_, false)) StartFlush();
    if (working_) return false;
    for (const auto& queue : queues_) {
      if (std::exchange(queue->serving, false)) queue->server.End();
    }
    return true;
  }

  const Result<void>& opened() const { return opened_; }

 private:
  void ExitUnless(const Result<void>& entered) {
    if (entered.ok()) return;
    // Requests are lost that the guest waits for, and whose memory the kernel may still write.
    log_(entered.error().message);
    ::_exit(1);
  }

  bool Serves(const ServedQueue& queue) const { return queue.serving && command_ == Command::kServe; }
  // Looks out for a while, instead of a sleep that would take longer than what it waits for: while it is awake it needs
  // no kicks, which cost the guest an exit each. Requests under way and requests to come are waited for differently
  // long, so each way of waiting learns by itself whether that pays.
  bool Spin() {
    if (command_ != Command::kServe) return false;
    const bool busy =
        std::any_of(queues_.begin(), queues_.end(), [](const auto& queue) { return queue->server.in_flight() != 0; });
    AdaptiveSpin& spin = busy ? spin_for_completions_ : spin_for_chains_;
    // Else what was started goes to the kernel by the call that sleeps.
    if (spin.Spins()) ExitUnless(ring_.Submit());
    return spin.Until([this] {
      return ring_.HasCompletions() || std::any_of(queues_.begin(), queues_.end(), [this](const auto& queue) {
               return Serves(*queue) && queue->server.HasChains();
             });
    });
  }
  // True: there is something to do already.
  bool EnableKicks() {
    bool more = false;
    for (const auto& queue : queues_) {
      if (Serves(*queue) && queue->server.EnableKicks()) more = true;
    }
    return more;
  }

  void StartOpen() {
    working_ = true;
    Spawn(channel_->Open(), [this](Result<void> opened) {
      opened_ = std::move(opened);
      open_ = opened_.ok();
      working_ = false;
    });
  }
  void StartFlush() {
    working_ = true;
    Spawn(FlushAll(*channel_), [this](const Result<void>& flushed) {
      if (!flushed.ok()) log_(flushed.error().message);
      working_ = false;
    });
  }

  const QueueServer::Log log_;
  IoRing ring_;
  Watch commands_;
  Alarm alarm_;
  std::unique_ptr<Offload> offload_;
  std::unique_ptr<BlockChannel> channel_;
  std::vector<std::unique_ptr<ServedQueue>> queues_;
  Command command_ = Command::kNone;
  bool look_again_ = false;
  AdaptiveSpin spin_for_completions_{kSpinNs};
  AdaptiveSpin spin_for_chains_{kSpinNs};
  bool working_ = false;  // the channel is being opened or flushed
  bool to_flush_ = false;
  bool open_ = false;
  Result<void> opened_;
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
  RequestStop(Stop::kAbandon);
  WaitStopped();
  Send(Command::kExit);
  ::pthread_join(thread_, nullptr);
}

void QueueWorker::Send(Command command) {
  {
    std::lock_guard lock(mutex_);
    command_ = command;
    ++commanded_;
  }
  SignalEventFd(command_event_.get());
}

Result<void> QueueWorker::OpenChannel() {
  Send(Command::kOpen);
  WaitStopped();
  std::lock_guard lock(mutex_);
  return opened_;
}

void QueueWorker::Start(std::vector<QueueSession> sessions) {
  {
    std::lock_guard lock(mutex_);
    sessions_ = std::move(sessions);
  }
  Send(Command::kServe);
}

void QueueWorker::RequestStop(Stop how) { Send(how == Stop::kSettle ? Command::kSettle : Command::kAbandon); }

void QueueWorker::WaitStopped() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return carried_out_ == commanded_; });
}

void* QueueWorker::Enter(void* argument) {
  auto* worker = static_cast<QueueWorker*>(argument);
  std::exception_ptr failure;
  try {
    // By the thread itself: naming another one takes /proc, which is not there.
    ::pthread_setname_np(::pthread_self(), ("queue" + std::to_string(worker->parts_.queues.at(0).index)).c_str());
    worker->engine_ =
        std::make_unique<Engine>(worker->memory_, worker->image_, worker->parts_, worker->command_event_.get());
  } catch (...) {
    failure = std::current_exception();
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

void QueueWorker::Run() {
  Command command = Command::kNone;
  uint64_t number = 0;
  while (command != Command::kExit) {
    if (engine_->Round()) {
      pulse_.Answer();
      std::unique_lock lock(mutex_);
      // Else it was woken for that sign of life only.
      if (number != commanded_) {
        number = commanded_;
        command = command_;
        auto sessions = std::exchange(sessions_, {});
        lock.unlock();
        engine_->Take(command, std::move(sessions));
      }
    }
    engine_->ServeQueues();
    if (!engine_->CarriedOut()) continue;
    std::lock_guard lock(mutex_);
    // Not so if the next command is already there: its event is due then.
    carried_out_ = number;
    if (command == Command::kOpen) opened_ = engine_->opened();
    changed_.notify_all();
  }
}

}  // namespace bulkhead::device
