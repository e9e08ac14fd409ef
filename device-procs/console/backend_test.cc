// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/backend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/console/uart16550.h"

namespace bulkhead::device {
namespace {

struct Ends {
  OwnFd read;
  OwnFd write;
};

Ends MakePipe() {
  std::array<int, 2> fds;
  if (::pipe2(fds.data(), O_CLOEXEC | O_NONBLOCK) != 0) ThrowErrno("pipe2");
  return {OwnFd(fds[0]), OwnFd(fds[1])};
}

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string TakeAll(int fd) {
  std::string got;
  std::array<char, 4096> piece;
  for (ssize_t count; (count = ::read(fd, piece.data(), piece.size())) > 0;) got.append(piece.data(), count);
  return got;
}

class FdBytePortTest : public testing::Test {
 protected:
  FdBytePortTest()
      : port_(
            loop_, [this](const std::string& line) { log_.push_back(line); }, {}, [this] { return now_ns_; }) {
    ::signal(SIGPIPE, SIG_IGN);
    port_.SetHandlers([this] { ++readable_; }, [this] { ++writable_; });
  }
  // One round of the loop with what is ready now.
  void RunPending() {
    loop_.Stop();
    loop_.Run();
  }
  std::string ReadPort(size_t most) {
    std::string got(most, '\0');
    got.resize(port_.Read(std::as_writable_bytes(std::span(got))));
    return got;
  }

  int64_t now_ns_ = 0;
  int readable_ = 0;
  int writable_ = 0;
  std::vector<std::string> log_;
  EventLoop loop_;
  FdBytePort port_;
};

TEST_F(FdBytePortTest, UnattachedItDiscards) {
  EXPECT_FALSE(port_.attached());
  EXPECT_EQ(port_.Write(Bytes("lost")), 4u);
  EXPECT_EQ(ReadPort(10), "");
}

TEST_F(FdBytePortTest, SaysWhenThereIsInputAndOnlyWhileSomeoneReads) {
  Ends in = MakePipe();
  port_.Attach(std::move(in.read), OwnFd());
  EXPECT_EQ(ReadPort(4), "");
  readable_ = 0;
  ASSERT_EQ(::write(in.write.get(), "abcdef", 6), 6);
  RunPending();
  RunPending();
  EXPECT_EQ(readable_, 1) << "no spinning while the input is not taken";
  EXPECT_EQ(ReadPort(4), "abcd");
  EXPECT_EQ(ReadPort(4), "ef");
  ASSERT_EQ(::write(in.write.get(), "g", 1), 1);
  RunPending();
  EXPECT_EQ(readable_, 2);
  EXPECT_EQ(ReadPort(4), "g");
}

TEST_F(FdBytePortTest, EndOfInputLeavesTheOutputAlone) {
  Ends in = MakePipe();
  Ends out = MakePipe();
  port_.Attach(std::move(in.read), std::move(out.write));
  ASSERT_EQ(::write(in.write.get(), "last", 4), 4);
  in.write.Close();
  readable_ = 0;
  for (int i = 0; i < 5; ++i) RunPending();
  EXPECT_LE(readable_, 1) << "a hang-up is not reported for ever";
  EXPECT_EQ(ReadPort(16), "last");
  for (int i = 0; i < 5; ++i) RunPending();
  EXPECT_LE(readable_, 1);
  EXPECT_EQ(ReadPort(16), "");
  EXPECT_EQ(port_.Write(Bytes("still here")), 10u);
  EXPECT_EQ(TakeAll(out.read.get()), "still here");
}

TEST_F(FdBytePortTest, SlowReaderGetsEveryByteOnce) {
  Ends out = MakePipe();
  port_.Attach(OwnFd(), std::move(out.write));
  std::string text(200'000, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 + i / 251);
  size_t taken = port_.Write(Bytes(text));
  EXPECT_LT(taken, text.size());
  writable_ = 0;
  RunPending();
  EXPECT_EQ(writable_, 0) << "no room yet";
  std::string got;
  while (taken < text.size()) {
    got += TakeAll(out.read.get());
    writable_ = 0;
    RunPending();
    ASSERT_EQ(writable_, 1);
    taken += port_.Write(Bytes(text).subspan(taken));
  }
  got += TakeAll(out.read.get());
  EXPECT_EQ(got, text);
}

TEST_F(FdBytePortTest, ReaderThatGoesAwayDoesNotStopTheGuest) {
  Ends out = MakePipe();
  port_.Attach(OwnFd(), std::move(out.write));
  const std::string text(100'000, 'x');
  EXPECT_LT(port_.Write(Bytes(text)), text.size());
  out.read.Close();
  writable_ = 0;
  RunPending();
  EXPECT_EQ(writable_, 1) << "whoever waited for room goes on";
  EXPECT_EQ(port_.Write(Bytes(text)), text.size());
  EXPECT_FALSE(port_.attached());
}

TEST_F(FdBytePortTest, HangUpIsNoticedWithoutWriting) {
  Ends out = MakePipe();
  port_.Attach(OwnFd(), std::move(out.write));
  EXPECT_TRUE(port_.attached());
  out.read.Close();
  RunPending();
  EXPECT_FALSE(port_.attached());
}

TEST_F(FdBytePortTest, OneConnectionAfterTheOther) {
  for (int round = 0; round < 3; ++round) {
    std::array<int, 2> fds;
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    OwnFd peer(fds[0]);
    OwnFd input(fds[1]);
    OwnFd output = OrThrow(DuplicateFd(input.get()));
    port_.Attach(std::move(input), std::move(output));
    ASSERT_EQ(::write(peer.get(), "in", 2), 2);
    EXPECT_EQ(ReadPort(8), "in");
    EXPECT_EQ(port_.Write(Bytes("out")), 3u);
    EXPECT_EQ(TakeAll(peer.get()), "out");
    peer.Close();
    RunPending();
    EXPECT_EQ(ReadPort(8), "");
    EXPECT_FALSE(port_.attached());
    EXPECT_EQ(port_.Write(Bytes("nobody")), 6u);
  }
}

TEST_F(FdBytePortTest, DetachFreesAWaitingWriter) {
  Ends out = MakePipe();
  port_.Attach(OwnFd(), std::move(out.write));
  const std::string text(100'000, 'x');
  EXPECT_LT(port_.Write(Bytes(text)), text.size());
  writable_ = 0;
  port_.Detach();
  EXPECT_EQ(writable_, 1);
  EXPECT_EQ(port_.Write(Bytes(text)), text.size());
}

TEST_F(FdBytePortTest, RegularFilesNeedNoEvents) {
  OwnFd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  OwnFd input(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(input.valid());
  ASSERT_EQ(::pwrite(file.get(), "script", 6, 0), 6);
  readable_ = 0;
  port_.Attach(std::move(input), std::move(file));
  EXPECT_GE(readable_, 1) << "the reader is started";
  EXPECT_EQ(ReadPort(16), "script");
  EXPECT_EQ(ReadPort(16), "");
  EXPECT_EQ(port_.Write(Bytes(std::string(300'000, 'x'))), 300'000u);
  EXPECT_TRUE(port_.attached());
}

TEST_F(FdBytePortTest, FullDiskLosesOutputAndSaysSoOnceAMinute) {
  OwnFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC | O_NONBLOCK));
  ASSERT_TRUE(full.valid());
  port_.Attach(OwnFd(), std::move(full));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(port_.Write(Bytes("text")), 4u);
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_EQ(log_[0], "console output is lost: No space left on device");
  now_ns_ += 61'000'000'000;
  port_.Write(Bytes("text"));
  EXPECT_EQ(log_.size(), 2u);
  EXPECT_TRUE(port_.attached());
}

// Both classes over real descriptors: a guest that echoes, a peer that pushes more than any buffer holds.
TEST_F(FdBytePortTest, UartOverASocketLosesAndRepeatsNothing) {
  std::array<int, 2> fds;
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
  OwnFd peer(fds[0]);
  OwnFd input(fds[1]);
  OwnFd output = OrThrow(DuplicateFd(input.get()));
  OwnFd irq = OrThrow(MakeEventFd());
  OwnFd line = OrThrow(DuplicateFd(irq.get()));
  Uart16550 uart(port_, std::move(irq));
  port_.Attach(std::move(input), std::move(output));
  uart.Resume();
  uart.Write(2, 1, 0x81);
  uart.Write(4, 1, 0x0B);
  uart.Write(1, 1, 0x01);

  std::string text(1'000'000, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + i / 256);
  std::string echoed;
  size_t pushed = 0;
  while (echoed.size() < text.size()) {
    const ssize_t count = ::write(peer.get(), text.data() + pushed, text.size() - pushed);
    if (count > 0) pushed += static_cast<size_t>(count);
    RunPending();
    if (DrainEventFd(line.get()) != 0) {
      // The guest's handler: it leaves only when nothing is pending.
      while ((uart.Read(2, 1) & 1) == 0) {
        while ((uart.Read(5, 1) & 0x21) == 0x21) uart.Write(0, 1, uart.Read(0, 1));
        if ((uart.Read(5, 1) & 0x20) == 0) {
          echoed += TakeAll(peer.get());
          RunPending();
        }
      }
    }
    uart.Flush();
    echoed += TakeAll(peer.get());
    ASSERT_TRUE(std::equal(echoed.begin(), echoed.end(), text.begin()));
  }
  EXPECT_EQ(echoed.size(), text.size());
}

}  // namespace
}  // namespace bulkhead::device
