// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/io_ring.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace bulkhead::device {
namespace {

// All that a disk needs of io_uring.
constexpr uint8_t kOperations[] = {IORING_OP_READV,     IORING_OP_WRITEV,   IORING_OP_FSYNC,
                                   IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_TIMEOUT};

// Best first; a kernel that does not know a flag says EINVAL. With the first (Linux 6.1) completions are worked off
// when this thread asks for them, instead of interrupting it; a flag in the ring says that there are some.
constexpr unsigned kSetups[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};

// Short of memory, or of room for completions: what completed makes room, and the next call hands over the rest.
Result<void> CheckEntered(int result) {
  if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
    return ErrnoError(-result, "io_uring failed");
  }
  return {};
}

[[noreturn]] void ThrowUnavailable(int code) {
  std::string line = "io_uring, which disks need, is not available: " + std::string(std::strerror(code));
  if (code == EPERM || code == EACCES) {
    line += "; allow it with 'sysctl -w kernel.io_uring_disabled=0', or in the container's system call filter";
  } else if (code == ENOSYS) {
    line += "; the kernel must be built with CONFIG_IO_URING and a container's filter must let it through";
  } else if (code == ENOMEM) {
    line += "; memory is short, or the locked-memory limit (ulimit -l) is too low";
  }
  throw FatalError(line, code);
}

// Debian 12's shared liburing does not export its wrappers of all of these.
void Register(const io_uring& ring, unsigned operation, const void* argument, size_t count, const char* what) {
  if (::syscall(SYS_io_uring_register, ring.ring_fd, operation, argument, count) < 0) ThrowErrno(what);
}

}  // namespace

IoRing::IoRing(unsigned operations) {
  int result = -EINVAL;
  for (const unsigned setup : kSetups) {
    io_uring_params params{};
    params.flags = setup | IORING_SETUP_R_DISABLED;
    result = ::io_uring_queue_init_params(operations, &ring_, &params);
    if (result != -EINVAL) break;
  }
  if (result < 0) ThrowUnavailable(-result);
}

IoRing::~IoRing() { ::io_uring_queue_exit(&ring_); }

unsigned IoRing::AddFile(int fd) {
  files_.push_back(fd);
  return static_cast<unsigned>(files_.size() - 1);
}

void IoRing::Enable() {
  Register(ring_, IORING_REGISTER_FILES, files_.data(), files_.size(), "register a disk's files with io_uring");
  std::vector<io_uring_restriction> restrictions;
  for (const uint8_t operation : kOperations) {
    io_uring_restriction& rule = restrictions.emplace_back();
    rule.opcode = IORING_RESTRICTION_SQE_OP;
    rule.sqe_op = operation;
  }
  // Registered files only. No register operation is listed, so none is allowed any more.
  io_uring_restriction& fixed = restrictions.emplace_back();
  fixed.opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
  fixed.sqe_flags = IOSQE_FIXED_FILE;
  Register(ring_, IORING_REGISTER_RESTRICTIONS, restrictions.data(), restrictions.size(), "restrict io_uring");
  Register(ring_, IORING_REGISTER_ENABLE_RINGS, nullptr, 0, "enable io_uring");
}

io_uring_sqe* IoRing::NextEntry() {
  io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
  while (entry == nullptr) {
    // The kernel takes all that is handed to it, however much is outstanding, and keeps completions that have no room
    // (IORING_FEAT_NODROP): so this makes room, at once.
    ::io_uring_submit(&ring_);
    entry = ::io_uring_get_sqe(&ring_);
  }
  return entry;
}

void IoRing::Prepare(io_uring_sqe* entry, Operation& operation) {
  ::io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  ::io_uring_sqe_set_data(entry, &operation);
}

void IoRing::Readv(unsigned file, uint64_t offset, std::span<const iovec> to, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_readv(entry, static_cast<int>(file), to.data(), static_cast<unsigned>(to.size()), offset);
  Prepare(entry, operation);
}

void IoRing::Writev(unsigned file, uint64_t offset, std::span<const iovec> from, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_writev(entry, static_cast<int>(file), from.data(), static_cast<unsigned>(from.size()), offset);
  Prepare(entry, operation);
}

void IoRing::SyncData(unsigned file, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_fsync(entry, static_cast<int>(file), IORING_FSYNC_DATASYNC);
  Prepare(entry, operation);
}

void IoRing::Allocate(unsigned file, int mode, uint64_t offset, uint64_t size_bytes, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_fallocate(entry, static_cast<int>(file), mode, static_cast<off_t>(offset),
                            static_cast<off_t>(size_bytes));
  Prepare(entry, operation);
}

void IoRing::Watch(unsigned file, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_poll_multishot(entry, static_cast<int>(file), POLLIN);
  Prepare(entry, operation);
}

void IoRing::Sleep(const __kernel_timespec& delay, Operation& operation) {
  io_uring_sqe* entry = NextEntry();
  ::io_uring_prep_timeout(entry, const_cast<__kernel_timespec*>(&delay), 0, 0);
  Prepare(entry, operation);
}

Result<void> IoRing::Submit() {
  if (::io_uring_sq_ready(&ring_) == 0) return CheckEntered(::io_uring_submit(&ring_));  // no call if nothing is due
  // What completes at once is then there without a second call.
  return CheckEntered(::io_uring_submit_and_get_events(&ring_));
}

bool IoRing::HasCompletions() const {
  return ::io_uring_cq_ready(&ring_) != 0 ||
         (__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

Result<void> IoRing::SubmitAndReap(bool wait) {
  // Without waiting it enters the kernel only if there is something to hand over or to work off.
  auto entered = wait ? CheckEntered(::io_uring_submit_and_wait(&ring_, 1)) : Submit();
  if (!entered.ok()) return entered;
  unsigned head;
  unsigned count = 0;
  io_uring_cqe* completed;
  io_uring_for_each_cqe(&ring_, head, completed) {
    ++count;
    static_cast<Operation*>(::io_uring_cqe_get_data(completed))
        ->Completed(completed->res, (completed->flags & IORING_CQE_F_MORE) != 0);
  }
  ::io_uring_cq_advance(&ring_, count);
  return {};
}

}  // namespace bulkhead::device
