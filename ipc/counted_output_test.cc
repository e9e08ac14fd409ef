// SPDX-License-Identifier: Apache-2.0
#include "ipc/counted_output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace bulkhead {
namespace {

// Of some kind, and what a reader finds there.
struct Output {
  OwnFd reader;
  OwnFd writer;

  std::string TakeAll() const {
    std::string got;
    std::array<char, 4096> piece;
    for (ssize_t count; (count = ::read(reader.get(), piece.data(), piece.size())) > 0;)
      got.append(piece.data(), static_cast<size_t>(count));
    return got;
  }
};

Output MakePipe() {
  std::array<int, 2> fds;
  if (::pipe2(fds.data(), O_CLOEXEC | O_NONBLOCK) != 0) ThrowErrno("pipe2");
  return {OwnFd(fds[0]), OwnFd(fds[1])};
}

Output MakeSocket() {
  std::array<int, 2> fds;
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()) != 0) ThrowErrno("socketpair");
  return {OwnFd(fds[0]), OwnFd(fds[1])};
}

Output MakeTerminal() {
  int outer = -1, inner = -1;
  termios raw{};
  ::cfmakeraw(&raw);
  if (::openpty(&outer, &inner, nullptr, &raw, nullptr) != 0) ThrowErrno("openpty");
  for (const int fd : {outer, inner}) ::fcntl(fd, F_SETFL, O_NONBLOCK | O_RDWR);
  return {OwnFd(outer), OwnFd(inner)};
}

Output MakeFile(int flags) {
  std::string path = "/tmp/counted-output-XXXXXX";
  const OwnFd made(::mkostemp(path.data(), O_CLOEXEC));
  Output file{OwnFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)),
              OwnFd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags))};
  ::unlink(path.c_str());
  if (!file.reader.valid() || !file.writer.valid()) ThrowErrno("open a file");
  return file;
}

struct Kind {
  const char* name;
  std::function<Output()> make;
};

// Processes that follow one another, each with what the one before left. The deaths are those of objects: what a
// process leaves is in the stage and in the output.
class CountedOutputTest : public testing::TestWithParam<Kind> {
 protected:
  CountedOutputTest() : output_(GetParam().make()) { Start(false); }

  void Start(bool successor) {
    counted_ = std::make_unique<CountedOutput>(
        OutputStage{.file = OrThrow(DuplicateFd(stage_.get())), .successor = successor});
    counted_->SetOutput(output_.writer.get());
  }
  // One that has saved that so many were written.
  void Succeed(uint64_t saved) {
    Start(true);
    counted_->GoOn(saved);
  }
  // As a device does: until all of it is gone or there is no room. How many are gone.
  size_t Put(const std::string& text) {
    const auto bytes = std::as_bytes(std::span(text));
    size_t taken = counted_->TakeOwed(bytes.size());
    while (taken < bytes.size()) {
      const auto count = counted_->Write(bytes.subspan(taken));
      if (!count.ok()) {
        EXPECT_EQ(count.error().code, EAGAIN) << count.error().message;
        break;
      }
      taken += *count;
    }
    return taken;
  }

  const OwnFd stage_ = OrThrow(CountedOutput::MakeStage("output-test"));
  const Output output_;
  std::unique_ptr<CountedOutput> counted_;
};

TEST_P(CountedOutputTest, WhatASuccessorsStateDoesNotHaveIsNotWrittenAgain) {
  EXPECT_EQ(Put("first"), 5u);
  EXPECT_EQ(counted_->written(), 5u);
  EXPECT_EQ(Put(" second"), 7u);
  // Killed before it saved anything of the second.
  Succeed(5);
  EXPECT_EQ(Put(" second third"), 13u);
  EXPECT_EQ(counted_->written(), 18u);
  EXPECT_EQ(output_.TakeAll(), "first second third");
  // Before it wrote anything.
  Succeed(18);
  EXPECT_EQ(Put(" fourth"), 7u);
  // Byte by byte.
  Succeed(18);
  for (const char each : std::string(" fourth fifth")) EXPECT_EQ(Put({each}), 1u);
  EXPECT_EQ(output_.TakeAll(), " fourth fifth");
  // Twice in a row.
  Succeed(25);
  Succeed(25);
  EXPECT_EQ(Put(" fifth end"), 10u);
  EXPECT_EQ(output_.TakeAll(), " end");
}

TEST_P(CountedOutputTest, APredecessorThatSavedNothingMayHaveWritten) {
  Put("hello");
  Start(true);
  Put("hello, world");
  EXPECT_EQ(output_.TakeAll(), "hello, world");
}

TEST_P(CountedOutputTest, LongStreamsStayWhole) {
  std::string all, got;
  uint64_t saved = 0;
  for (unsigned round = 0; round < 300; ++round) {
    std::string text(1 + round * 37 % 5000, static_cast<char>('a' + round % 26));
    if (round % 3 == 0) saved = counted_->written();
    if (round % 3 == 2) Succeed(saved);
    const std::string due = all.substr(counted_->written()) + text;
    all = all.substr(0, counted_->written()) + due;
    for (size_t put = 0; put < due.size();) {
      put += Put(due.substr(put));
      got += output_.TakeAll();
    }
  }
  got += output_.TakeAll();
  EXPECT_EQ(got.size(), all.size());
  EXPECT_TRUE(got == all);
  // What is done with takes up no memory.
  struct stat status;
  ASSERT_EQ(::fstat(stage_.get(), &status), 0);
  EXPECT_LT(status.st_blocks * 512, 512 << 10);
}

TEST_P(CountedOutputTest, AStateOfAnotherMachineOwesNothing) {
  counted_->GoOn(1000);
  EXPECT_EQ(Put("new"), 3u);
  EXPECT_EQ(counted_->written(), 1003u);
  EXPECT_EQ(output_.TakeAll(), "new");
}

INSTANTIATE_TEST_SUITE_P(Outputs, CountedOutputTest,
                         testing::Values(Kind{"Pipe", MakePipe}, Kind{"Socket", MakeSocket},
                                         Kind{"Terminal", MakeTerminal}, Kind{"File", [] { return MakeFile(0); }},
                                         Kind{"AppendedFile", [] { return MakeFile(O_APPEND); }}),
                         [](const auto& info) { return info.param.name; });

TEST(CountedOutput, OthersMayAppendToTheSameFile) {
  const OwnFd stage = OrThrow(CountedOutput::MakeStage("output-test"));
  const Output file = MakeFile(O_APPEND);
  const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  CountedOutput first({.file = OrThrow(DuplicateFd(stage.get())), .successor = false});
  first.SetOutput(file.writer.get());
  EXPECT_EQ(OrThrow(first.Write(bytes("ours "))), 5u);
  const OwnFd other(::open(("/proc/self/fd/" + std::to_string(file.writer.get())).c_str(), O_WRONLY | O_APPEND));
  EXPECT_EQ(::write(other.get(), "theirs ", 7), 7);
  EXPECT_EQ(OrThrow(first.Write(bytes("more "))), 5u);
  CountedOutput second({.file = OrThrow(DuplicateFd(stage.get())), .successor = true});
  second.SetOutput(file.writer.get());
  second.GoOn(5);
  EXPECT_EQ(second.TakeOwed(10), 5u);
  EXPECT_EQ(OrThrow(second.Write(bytes("again "))), 6u);
  EXPECT_EQ(file.TakeAll(), "ours theirs more again ");
}

TEST(CountedOutput, WhereFilesMayNotBeLargeItGoesOnUncounted) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{.rlim_cur = 20'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Output pipe = MakePipe();
  CountedOutput counted({.file = OrThrow(CountedOutput::MakeStage("output-test")), .successor = false});
  counted.SetOutput(pipe.writer.get());
  std::string all, got;
  while (all.size() < 100'000) {
    const std::string text = std::to_string(all.size()) + std::string(500, ' ');
    ASSERT_EQ(OrThrow(counted.Write(std::as_bytes(std::span(text)))), text.size());
    all += text;
    got += pipe.TakeAll();
  }
  EXPECT_EQ(counted.written(), all.size());
  EXPECT_TRUE(got == all);
  EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
}

TEST(CountedOutput, WithoutAStageItIsAnyOutput) {
  const Output pipe = MakePipe();
  CountedOutput counted;
  EXPECT_EQ(counted.TakeOwed(5), 0u);
  counted.SetOutput(pipe.writer.get());
  EXPECT_EQ(OrThrow(counted.Write(std::as_bytes(std::span("text", 4)))), 4u);
  EXPECT_EQ(pipe.TakeAll(), "text");
}

}  // namespace
}  // namespace bulkhead
