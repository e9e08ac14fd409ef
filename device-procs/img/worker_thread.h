// SPDX-License-Identifier: Apache-2.0
// The thread that works on images: their ring and their channels are its own. It runs one job at a time and tells the
// main thread of its end through the mailbox. Made before lock-down; Run from the main thread.
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/block/task.h"
#include "device-procs/common/block/work_pool.h"
#include "ipc/mailbox.h"

namespace bulkhead::img {

// How far the running job is. Written by the worker, read by anyone.
struct Progress {
  std::atomic<uint64_t> done{0};
  std::atomic<uint64_t> total{0};
};

// One image with what is below it. Worker thread.
struct OpenImage {
  device::ImageChain* chain;
  std::unique_ptr<device::BlockChannel> channel;
  bool open = false;
};

class WorkerThread {
 public:
  using Job = std::function<device::Task<Result<void>>()>;
  using Done = std::function<void(Result<void>)>;

  // Returns when the thread has made its ring; throws FatalError. Images and mailbox outlive it.
  WorkerThread(std::vector<std::unique_ptr<device::ImageChain>>& images, Mailbox& mailbox);
  // It ends with the process.
  ~WorkerThread() = delete;

  // Runs a job; `done` is called on the main thread. One at a time.
  void Run(Job job, Done done);
  std::vector<OpenImage>& images() { return opened_; }
  // For jobs.
  device::Offload& offload() { return *offload_; }
  Progress& progress() { return progress_; }

 private:
  class Wake;

  static void* Enter(void* worker);
  void SetUp();
  [[noreturn]] void Serve();
  void Begin();

  std::vector<std::unique_ptr<device::ImageChain>>& chains_;
  Mailbox& mailbox_;
  OwnFd wake_event_;
  Progress progress_;

  std::mutex mutex_;
  Job next_job_;
  Done next_done_;

  // The thread's own.
  std::unique_ptr<device::IoRing> ring_;
  std::unique_ptr<Wake> wake_;
  std::unique_ptr<device::WorkPool> offload_;
  std::vector<OpenImage> opened_;
  Job job_;
};

}  // namespace bulkhead::img
