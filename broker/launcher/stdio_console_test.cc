// SPDX-License-Identifier: Apache-2.0
// Each test runs the console in a process of its own, whose stdin and stdout are the test's.
#include "broker/launcher/stdio_console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <functional>

namespace bulkhead::launcher {
namespace {

struct Pipe {
  OwnFd read;
  OwnFd write;
};

Pipe MakePipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) ThrowErrno("pipe");
  return {OwnFd(ends[0]), OwnFd(ends[1])};
}

// The two sides of a terminal without job control.
Pipe MakeTerminal() {
  OwnFd user(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  std::array<char, 64> name{};
  if (::grantpt(user.get()) != 0 || ::unlockpt(user.get()) != 0 ||
      ::ptsname_r(user.get(), name.data(), name.size()) != 0) {
    ThrowErrno("pty");
  }
  return {OwnFd(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC)), std::move(user)};
}

bool Readable(int fd) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, 10'000) == 1;
}

// Reads until `end` says that it is enough, the end of input, or a time that only a hang reaches.
std::string ReadUntil(int fd, const std::function<bool(const std::string&)>& enough) {
  std::string text;
  std::array<char, 4096> bytes;
  while (!enough(text) && Readable(fd)) {
    const ssize_t count = ::read(fd, bytes.data(), bytes.size());
    if (count <= 0) break;
    text.append(bytes.data(), static_cast<size_t>(count));
  }
  return text;
}
std::string ReadAll(int fd) {
  return ReadUntil(fd, [](const std::string&) { return false; });
}

void WriteText(int fd, const std::string& text) {
  ASSERT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

// Runs `body` in a child with these as stdin and stdout; its value is the exit status, a hang is SIGALRM.
pid_t RunWith(int input, int output, const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::alarm(20);
  ::signal(SIGPIPE, SIG_IGN);
  ::dup2(input, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::close_range(3, ~0U, 0);
  ::_exit(body());
}

int StatusOf(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

StdioConsole::Keys NoKeys() {
  return {.quit = [] {}, .power_button = [] {}};
}

TEST(StdioConsole, CarriesStdinToTheGuest) {
  Pipe input = MakePipe(), output = MakePipe();
  WriteText(input.write.get(), "to the guest");
  input.write.Close();
  const pid_t pid = RunWith(input.read.get(), output.write.get(), [] {
    StdioConsole console;
    const RawTerminal terminal;
    const OwnFd guest = console.TakeGuestEnd();
    console.StartInput(terminal, NoKeys());
    return ReadAll(guest.get()) == "to the guest" ? 0 : 1;
  });
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, EndOfStdinDoesNotEndTheGuestsOutput) {
  Pipe input = MakePipe(), output = MakePipe();
  input.write.Close();
  const pid_t pid = RunWith(input.read.get(), output.write.get(), [] {
    StdioConsole console;
    const RawTerminal terminal;
    OwnFd guest = console.TakeGuestEnd();
    console.StartOutput();
    console.StartInput(terminal, NoKeys());
    if (!ReadAll(guest.get()).empty()) return 1;  // it hears that no more comes
    if (::write(guest.get(), "late", 4) != 4) return 2;
    guest.Close();
    return Readable(console.output_ended()) ? 0 : 3;
  });
  output.write.Close();
  EXPECT_EQ(ReadAll(output.read.get()), "late");
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, AllOutputIsWrittenBeforeItIsSaidToHaveEnded) {
  constexpr size_t kBytes = 3'000'000;  // more than the socket and the pipe hold
  Pipe output = MakePipe();
  const pid_t pid = RunWith(output.read.get(), output.write.get(), [] {
    StdioConsole console;
    OwnFd guest = console.TakeGuestEnd();
    console.StartOutput();
    const std::string text(kBytes, 'x');
    size_t at = 0;
    while (at < kBytes) {
      const ssize_t count = ::write(guest.get(), text.data() + at, kBytes - at);
      if (count <= 0) return 1;
      at += static_cast<size_t>(count);
    }
    guest.Close();
    if (!Readable(console.output_ended())) return 2;
    ::_exit(0);  // at once: nothing may be left to write
  });
  output.write.Close();
  EXPECT_EQ(ReadAll(output.read.get()).size(), kBytes);
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, AClosedStdoutDoesNotStopTheGuest) {
  Pipe output = MakePipe();
  output.read.Close();
  const pid_t pid = RunWith(output.write.get(), output.write.get(), [] {
    StdioConsole console;
    OwnFd guest = console.TakeGuestEnd();
    console.StartOutput();
    const std::string text(1'000'000, 'x');
    size_t at = 0;
    while (at < text.size()) {
      const ssize_t count = ::write(guest.get(), text.data() + at, text.size() - at);
      if (count <= 0) return 1;
      at += static_cast<size_t>(count);
    }
    guest.Close();
    return Readable(console.output_ended()) ? 0 : 2;
  });
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, EndsWhileTheGuestLivesAndNobodyTypesOrReads) {
  Pipe input = MakePipe(), output = MakePipe();
  const pid_t pid = RunWith(input.read.get(), output.write.get(), [] {
    OwnFd guest;
    {
      StdioConsole console;
      const RawTerminal terminal;
      guest = console.TakeGuestEnd();
      console.StartOutput();
      console.StartInput(terminal, NoKeys());
      // Fills the pipe that the test does not read, and all before it.
      ::fcntl(guest.get(), F_SETFL, O_NONBLOCK);
      const std::string text(4096, 'x');
      pollfd ready{guest.get(), POLLOUT, 0};
      while (::poll(&ready, 1, 200) == 1 && ::write(guest.get(), text.data(), text.size()) > 0) {
      }
      console.StopInput();
    }
    return 0;
  });
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, KeysOfATerminalAreCommandsAfterControlA) {
  Pipe terminal_ends = MakeTerminal();
  const pid_t pid = RunWith(terminal_ends.read.get(), terminal_ends.read.get(), [] {
    StdioConsole console;
    const RawTerminal terminal;
    const OwnFd guest = console.TakeGuestEnd();
    std::atomic<int> presses = 0;
    const OwnFd quit = OrThrow(MakeEventFd());
    console.StartInput(terminal, {.quit = [&] { SignalEventFd(quit.get()); }, .power_button = [&] { ++presses; }});
    if (::write(STDOUT_FILENO, "raw", 3) != 3) return 4;
    const std::string heard = ReadUntil(guest.get(), [](const std::string& text) { return text.size() >= 4; });
    if (heard != "a\x03\x01z" || ::write(STDOUT_FILENO, "heard", 5) != 5) return 1;
    if (!Readable(quit.get())) return 2;
    console.StopInput();
    return presses == 1 ? 0 : 3;
  });
  terminal_ends.read.Close();
  const auto await = [&](const char* word) {
    ReadUntil(terminal_ends.write.get(),
              [word](const std::string& text) { return text.find(word) != std::string::npos; });
  };
  await("raw");
  WriteText(terminal_ends.write.get(), "a\x03\x01s\x01\x01z");
  await("heard");
  WriteText(terminal_ends.write.get(), "\x01x");
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(StdioConsole, ControlAFromAPipeIsAByteLikeAnyOther) {
  Pipe input = MakePipe(), output = MakePipe();
  WriteText(input.write.get(), "\x01x");
  input.write.Close();
  const pid_t pid = RunWith(input.read.get(), output.write.get(), [] {
    StdioConsole console;
    const RawTerminal terminal;
    const OwnFd guest = console.TakeGuestEnd();
    console.StartInput(terminal, NoKeys());
    return ReadAll(guest.get()) == "\x01x" ? 0 : 1;
  });
  EXPECT_EQ(StatusOf(pid), 0);
}

TEST(RawTerminal, IsRestoredAtItsEndAndByAFatalSignal) {
  for (const bool fatal : {false, true}) {
    Pipe ends = MakeTerminal();
    termios before{}, after{};
    ASSERT_EQ(::tcgetattr(ends.read.get(), &before), 0);
    const pid_t pid = RunWith(ends.read.get(), ends.read.get(), [fatal] {
      const RawTerminal terminal;
      termios mode{};
      ::tcgetattr(STDIN_FILENO, &mode);
      if ((mode.c_lflag & ICANON) != 0) return 1;
      if (fatal) ::raise(SIGQUIT);
      return 0;
    });
    EXPECT_EQ(StatusOf(pid), fatal ? 128 + SIGQUIT : 0);
    ASSERT_EQ(::tcgetattr(ends.read.get(), &after), 0);
    EXPECT_EQ(before.c_lflag, after.c_lflag);
    EXPECT_EQ(before.c_iflag, after.c_iflag);
  }
}

}  // namespace
}  // namespace bulkhead::launcher
