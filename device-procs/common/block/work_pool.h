// SPDX-License-Identifier: Apache-2.0
// A few threads that compute for the thread of a ring, which hears through the ring of what is done. Made, used and
// destroyed by that thread; made before lock-down, before the ring is enabled.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "device-procs/common/block/io_ring.h"
#include "device-procs/common/block/offload.h"
#include "ipc/fd.h"

namespace bulkhead::device {

class WorkPool final : public Offload {
 public:
  // As many threads as there are processors, at most `most`. Returns when all are there; throws FatalError.
  WorkPool(IoRing& ring, unsigned most);
  // Nothing is outstanding.
  ~WorkPool() override;
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  void Start(Job& job) override;
  unsigned width() const override { return static_cast<unsigned>(threads_.size()); }

 private:
  // Whether something is finished.
  class News final : public IoRing::Operation {
   public:
    News(WorkPool& owner, IoRing& ring, int fd) : owner_(owner), ring_(ring), file_(ring.AddFile(fd)) {}
    void Arm() { ring_.Watch(file_, *this); }
    void Completed(int32_t, bool more) override;

   private:
    WorkPool& owner_;
    IoRing& ring_;
    const unsigned file_;
  };

  static void* Enter(void* pool);
  void Work();
  void StopThreads();

  OwnFd finished_event_;
  News news_;
  bool armed_ = false;
  std::vector<pthread_t> threads_;

  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned named_ = 0;
  bool ending_ = false;
  std::deque<Job*> waiting_;
  std::vector<Job*> finished_;
};

}  // namespace bulkhead::device
