// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/stdio_console.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include "ipc/rpc.h"

namespace bulkhead::launcher {
namespace {

constexpr char kPrefix = 0x01;  // Ctrl-a, as in QEMU
// Bytes for a guest that does not read. A terminal is read far ahead, since the next key may be the one that ends the
// VM.
constexpr size_t kMaxPendingPiped = 4096;
constexpr size_t kMaxPendingTyped = size_t{1} << 20;
constexpr int kForegroundPollMs = 300;

constexpr const char* kKeyHelp =
    "\r\nCtrl-a h  this help\r\nCtrl-a s  press the guest's power button\r\nCtrl-a x  end the VM now\r\n"
    "Ctrl-a Ctrl-a, Ctrl-a a  send Ctrl-a to the guest\r\n";

// Waits until `fd` has one of `events` (or an error, which the next call on it tells); false to stop.
bool WaitFor(int fd, short events, int stop) {
  std::array<pollfd, 2> waits{{{stop, POLLIN, 0}, {fd, events, 0}}};
  while (::poll(waits.data(), waits.size(), -1) < 0) {
    if (errno != EINTR) return false;
  }
  return waits[0].revents == 0;
}

// All of it, also to a slow reader; false if the other side is gone, or to stop. Bytes come in pieces small enough that
// a descriptor ready for writing takes one at once.
bool WriteAll(int fd, int stop, const char* bytes, size_t count) {
  while (count != 0) {
    if (!WaitFor(fd, POLLOUT, stop)) return false;
    const ssize_t written = ::write(fd, bytes, count);
    if (written < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (written <= 0) return false;
    bytes += written;
    count -= static_cast<size_t>(written);
  }
  return true;
}

}  // namespace

StdioConsole::StdioConsole()
    : stop_input_(OrThrow(MakeEventFd())), stop_output_(OrThrow(MakeEventFd())), output_ended_(OrThrow(MakeEventFd())) {
  auto ends = MakeSocketPair();
  our_end_ = std::move(ends.first);
  guest_end_ = std::move(ends.second);
}

StdioConsole::~StdioConsole() {
  StopInput();
  SignalEventFd(stop_output_.get());
  if (output_.joinable()) output_.join();
}

void StdioConsole::StartOutput() {
  output_ = std::thread([this] { CarryOutput(); });
}

void StdioConsole::StartInput(const RawTerminal& terminal, Keys keys) {
  input_ = std::thread([this, &terminal, keys = std::move(keys)] { CarryInput(terminal, keys); });
}

void StdioConsole::StopInput() {
  SignalEventFd(stop_input_.get());
  if (input_.joinable()) input_.join();
}

void StdioConsole::CarryOutput() {
  std::array<char, 4096> bytes;
  bool listening = true;
  while (WaitFor(our_end_.get(), POLLIN, stop_output_.get())) {
    const ssize_t count = ::read(our_end_.get(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    // A closed stdout must not stop the guest: what it says is then lost.
    if (listening) listening = WriteAll(STDOUT_FILENO, stop_output_.get(), bytes.data(), static_cast<size_t>(count));
  }
  SignalEventFd(output_ended_.get());
}

bool StdioConsole::TakeKey(char key, bool& after_prefix, const Keys& keys, std::string& out) {
  if (!after_prefix) {
    after_prefix = key == kPrefix;
    if (!after_prefix) out += key;
    return true;
  }
  after_prefix = false;
  switch (key) {
    case 'x':
      keys.quit();
      return false;
    case 's':
      keys.power_button();
      break;
    case 'h':
    case '?':
      std::fputs(kKeyHelp, stderr);
      break;
    case kPrefix:
    case 'a':
      out += kPrefix;
      break;
    default:
      break;
  }
  return true;
}

void StdioConsole::CarryInput(const RawTerminal& terminal, const Keys& keys) {
  const bool typed = terminal.is_terminal();
  const size_t max_pending = typed ? kMaxPendingTyped : kMaxPendingPiped;
  std::array<char, 4096> bytes;
  std::string pending;
  bool after_prefix = false, more = true, heard = true, ours = RawTerminal::InForeground();
  while (more || !pending.empty()) {
    if (typed && ours != RawTerminal::InForeground()) {
      ours = !ours;
      if (ours) terminal.Enter();
    }
    const bool room = more && pending.size() < max_pending && (ours || !typed);
    std::array<pollfd, 3> waits{{{stop_input_.get(), POLLIN, 0},
                                 {room ? STDIN_FILENO : -1, POLLIN, 0},
                                 {pending.empty() ? -1 : our_end_.get(), POLLOUT, 0}}};
    // Nothing tells a background job that it has come to the foreground.
    if (::poll(waits.data(), waits.size(), typed && !ours ? kForegroundPollMs : -1) < 0 && errno != EINTR) return;
    if (waits[0].revents != 0) return;
    if (waits[1].revents != 0 && (!typed || RawTerminal::InForeground())) {
      const ssize_t count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
      more = count > 0 || (count < 0 && (errno == EINTR || errno == EAGAIN));
      for (ssize_t i = 0; i < count; ++i) {
        const char byte = bytes[static_cast<size_t>(i)];
        if (!typed) {
          pending += byte;
        } else if (!TakeKey(byte, after_prefix, keys, pending)) {
          return;
        }
      }
    }
    if (waits[2].revents != 0) {
      const ssize_t sent = ::send(our_end_.get(), pending.data(), pending.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      heard = sent > 0 || (sent < 0 && (errno == EAGAIN || errno == EINTR));
      if (sent > 0) pending.erase(0, static_cast<size_t>(sent));
    }
    // A console that died may leave its VM running: the terminal's commands must go on working.
    if (!heard) pending.clear();
  }
  // End of input is not the end of the VM; the guest just hears no more.
  ::shutdown(our_end_.get(), SHUT_WR);
}

}  // namespace bulkhead::launcher
