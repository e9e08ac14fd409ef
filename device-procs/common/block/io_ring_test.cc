// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/io_ring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>
#include <optional>

#include "ipc/fd.h"

namespace bulkhead::device {

class IoRingPeer {
 public:
  static io_uring_sqe* Next(IoRing& ring) { return ring.NextEntry(); }
  static int fd(const IoRing& ring) { return ring.ring_.ring_fd; }
};

namespace {

struct Outcome final : IoRing::Operation {
  void Completed(int32_t value, bool again) override {
    result = value;
    more = again;
    ++count;
  }
  std::optional<int32_t> result;
  bool more = false;
  int count = 0;
};

class IoRingTest : public testing::Test {
 protected:
  IoRingTest() : file_(::memfd_create("image", MFD_CLOEXEC)), event_(OrThrow(MakeEventFd())), ring_(8) {
    EXPECT_EQ(::ftruncate(file_.get(), 8192), 0);
    file_index_ = ring_.AddFile(file_.get());
    event_index_ = ring_.AddFile(event_.get());
    ring_.Enable();
  }
  int32_t WaitFor(Outcome& outcome) {
    while (!outcome.result) {
      if (!ring_.SubmitAndReap(true).ok()) return INT32_MIN;
    }
    return *std::exchange(outcome.result, std::nullopt);
  }

  OwnFd file_;
  OwnFd event_;
  IoRing ring_;
  unsigned file_index_ = 0;
  unsigned event_index_ = 0;
};

TEST_F(IoRingTest, MovesBytes) {
  std::array<char, 4> text{'a', 'b', 'c', 'd'};
  std::array<char, 4> back{};
  const iovec from{text.data(), text.size()};
  const iovec to{back.data(), back.size()};
  Outcome written, read;
  ring_.Writev(file_index_, 100, {&from, 1}, written);
  EXPECT_EQ(WaitFor(written), 4);
  ring_.Readv(file_index_, 100, {&to, 1}, read);
  EXPECT_EQ(WaitFor(read), 4);
  EXPECT_EQ(back, text);
}

TEST_F(IoRingTest, WatchGoesOnWithoutTheEventBeingRead) {
  Outcome watch;
  ring_.Watch(event_index_, watch);
  for (int i = 1; i <= 3; ++i) {
    SignalEventFd(event_.get());
    EXPECT_GT(WaitFor(watch), 0);
    EXPECT_TRUE(watch.more);
    EXPECT_EQ(watch.count, i);
  }
}

TEST_F(IoRingTest, SleepsAndWakes) {
  Outcome outcome;
  const __kernel_timespec delay{.tv_sec = 0, .tv_nsec = 1'000'000};
  ring_.Sleep(delay, outcome);
  EXPECT_EQ(WaitFor(outcome), -ETIME);
  EXPECT_EQ(outcome.count, 1);
}

TEST_F(IoRingTest, RefusesOtherOperations) {
  for (const uint8_t operation : {IORING_OP_NOP, IORING_OP_OPENAT, IORING_OP_SOCKET, IORING_OP_READ}) {
    Outcome outcome;
    io_uring_sqe* entry = IoRingPeer::Next(ring_);
    ::io_uring_prep_nop(entry);
    entry->opcode = operation;
    entry->flags = IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data(entry, static_cast<IoRing::Operation*>(&outcome));
    EXPECT_EQ(WaitFor(outcome), -EACCES) << int{operation};
  }
}

TEST_F(IoRingTest, RefusesFilesThatAreNotRegistered) {
  Outcome outcome;
  io_uring_sqe* entry = IoRingPeer::Next(ring_);
  ::io_uring_prep_fsync(entry, file_.get(), IORING_FSYNC_DATASYNC);
  ::io_uring_sqe_set_data(entry, static_cast<IoRing::Operation*>(&outcome));
  EXPECT_EQ(WaitFor(outcome), -EACCES);
}

TEST_F(IoRingTest, RefusesRegistrations) {
  const int fd = file_.get();
  EXPECT_EQ(::syscall(SYS_io_uring_register, IoRingPeer::fd(ring_), IORING_UNREGISTER_FILES, nullptr, 0), -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(::syscall(SYS_io_uring_register, IoRingPeer::fd(ring_), IORING_REGISTER_EVENTFD, &fd, 1), -1);
  EXPECT_EQ(errno, EACCES);
}

}  // namespace
}  // namespace bulkhead::device
