// SPDX-License-Identifier: Apache-2.0
// The thread of one or more queues, with its io_uring and its one channel to the image: it sleeps in the ring only,
// woken by kicks, completions and its commands. Made before lock-down; the rest is called on the device thread.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device-procs/common/pulse.h"
#include "device-procs/disk/queue_server.h"

namespace bulkhead::device {

struct QueueWorkerParts {
  struct Queue {
    uint16_t index = 0;
    int kick_fd = -1;  // needed during construction only
  };
  std::vector<Queue> queues;  // at least one
  uint16_t queue_size = 0;    // the most entries that one of them can have
  std::string disk_id;
  Throttle* throttle = nullptr;  // of the whole disk; outlives the worker
  QueueServer::Log log;          // called on the queue thread
};

class QueueWorker {
 public:
  enum class Stop {
    kSettle,   // what is in flight is finished, and then all that was written made durable
    kAbandon,  // what is in flight is cut short where that can be
  };

  // Returns when the thread has set itself up; throws FatalError if it could not. Image and memory outlive it.
  QueueWorker(const GuestMemory& memory, BlockImage& image, QueueWorkerParts parts);
  ~QueueWorker();
  QueueWorker(const QueueWorker&) = delete;
  QueueWorker& operator=(const QueueWorker&) = delete;

  // Opens the channel on the queue thread and returns when that is done: reads the image's header, which is hostile.
  // After lock-down, once, before Start.
  Result<void> OpenChannel();
  // Serves these sessions, each of one of its queues, from now on, beginning with a look at each; while stopped only.
  void Start(std::vector<QueueSession> sessions);
  // No chain of any of its queues is taken any more. After WaitStopped none is in flight, and the sessions' queues are
  // not touched.
  void RequestStop(Stop how);
  void WaitStopped();
  // Asks the thread for a sign of life; see Pulse. Does not wait.
  unsigned AskPulse() { return pulse_.Ask(command_event_); }

 private:
  enum class Command { kNone, kOpen, kServe, kSettle, kAbandon, kExit };
  class Watch;
  class Alarm;
  struct ServedQueue;
  class Engine;

  static void* Enter(void* worker);
  void Send(Command command);
  void Run();

  const GuestMemory& memory_;
  BlockImage& image_;
  const QueueWorkerParts parts_;
  OwnFd command_event_;
  Pulse pulse_;
  pthread_t thread_{};

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  std::exception_ptr failure_;
  // The device thread's last command, numbered, and the last number that has been carried out: each but kServe is.
  Command command_ = Command::kNone;
  uint64_t commanded_ = 0;
  uint64_t carried_out_ = 0;
  std::vector<QueueSession> sessions_;  // of kServe
  Result<void> opened_;

  // The queue thread's own.
  std::unique_ptr<Engine> engine_;
};

}  // namespace bulkhead::device
