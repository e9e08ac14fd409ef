// SPDX-License-Identifier: Apache-2.0
// One queue thread's io_uring: its only way to files, and all that it waits in. Set up before lock-down; from Enable on
// the kernel itself takes nothing but the operations below on the files that were added, whatever the process becomes.
// Everything on the thread that made it.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "ipc/result.h"

namespace bulkhead::device {

class IoRing {
 public:
  class Operation {
   public:
    // `result` is what the system call of the same name would return, or -errno. `more`: a watch goes on.
    virtual void Completed(int32_t result, bool more) = 0;

   protected:
    ~Operation() = default;
  };

  // `operations`: as many as are outstanding at one time; more than that only cost system calls. Throws FatalError
  // that says what to do where the host does not allow io_uring.
  explicit IoRing(unsigned operations);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // Registers a file; the ring holds a reference of its own. Returns its index for the calls below.
  unsigned AddFile(int fd);
  void Enable();

  // Each starts with the next SubmitAndReap and completes `operation` from inside of one; a watch does so each time the
  // file becomes readable, until it reports no more. Vectors and operation stay valid until then.
  void Readv(unsigned file, uint64_t offset, std::span<const iovec> to, Operation& operation);
  void Writev(unsigned file, uint64_t offset, std::span<const iovec> from, Operation& operation);
  void SyncData(unsigned file, Operation& operation);
  void Allocate(unsigned file, int mode, uint64_t offset, uint64_t size_bytes, Operation& operation);
  void Watch(unsigned file, Operation& operation);
  // Completes, with -ETIME, when the delay is over; `delay` too stays valid until then.
  void Sleep(const __kernel_timespec& delay, Operation& operation);

  // Hands over what was started, and completes nothing. For errors see SubmitAndReap.
  Result<void> Submit();
  // Whether SubmitAndReap would complete something without sleeping: a look at memory, which costs no system call.
  bool HasCompletions() const;
  // Hands over what was started; then, if `wait`, sleeps until something completes; then completes all that has. An
  // error is the kernel's or this program's fault, never the guest's, and leaves requests that never complete: the
  // process has to end.
  Result<void> SubmitAndReap(bool wait);

 private:
  friend class IoRingPeer;  // its test, which tries what the kernel must refuse

  io_uring_sqe* NextEntry();
  void Prepare(io_uring_sqe* entry, Operation& operation);

  io_uring ring_{};
  std::vector<int> files_;
};

}  // namespace bulkhead::device
