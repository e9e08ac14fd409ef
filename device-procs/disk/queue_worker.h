// SPDX-License-Identifier: Apache-2.0
// One queue's thread, with its io_uring: it sleeps in the ring only, woken by kicks, completions and its commands. Made
// before lock-down; Start, RequestStop and WaitStopped on the device thread.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>

#include "device-procs/disk/queue_server.h"

namespace bulkhead::device {

struct QueueWorkerParts {
  uint16_t index = 0;
  uint16_t queue_size = 0;  // the most entries the queue can have
  int kick_fd = -1;         // needed during construction only
  std::string disk_id;
  QueueServer::Log log;  // called on the queue thread
};

class QueueWorker {
 public:
  // Returns when the thread has set itself up; throws FatalError if it could not. Image and memory outlive it.
  QueueWorker(const GuestMemory& memory, BlockImage& image, QueueWorkerParts parts);
  ~QueueWorker();
  QueueWorker(const QueueWorker&) = delete;
  QueueWorker& operator=(const QueueWorker&) = delete;

  // Serves the session's queue from now on, beginning with a look at it; while stopped only.
  void Start(const QueueSession& session);
  // No chain is taken any more; those in flight are finished, or, if `abandon`, cut short where that can be. After
  // WaitStopped none is in flight, and the session's queue is not touched.
  void RequestStop(bool abandon);
  void WaitStopped();

 private:
  enum class Command { kStop, kAbandon, kServe, kExit };
  class Watch;
  struct Engine;

  static void* Enter(void* worker);
  void SetUp();
  void Run();
  void TakeCommand();
  void EndSession();

  const GuestMemory& memory_;
  BlockImage& image_;
  const QueueWorkerParts parts_;
  OwnFd command_event_;
  pthread_t thread_{};

  std::mutex mutex_;
  std::condition_variable changed_;
  Command command_ = Command::kStop;  // what the device thread wants
  QueueSession session_;
  bool ready_ = false;
  std::exception_ptr failure_;
  bool stopped_ = true;

  // The queue thread's own.
  std::unique_ptr<Engine> engine_;
};

}  // namespace bulkhead::device
