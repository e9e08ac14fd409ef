// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/stdio_console.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>

#include "ipc/rpc.h"

namespace bulkhead::launcher {
namespace {

constexpr char kPrefix = 0x01;  // Ctrl-a, as in QEMU

constexpr const char* kKeyHelp =
    "\r\nCtrl-a h  this help\r\nCtrl-a s  press the guest's power button\r\nCtrl-a x  end the VM now\r\n"
    "Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n";

// All of it, also to a slow reader; false if the other side is gone.
bool WriteAll(int fd, const char* bytes, size_t count) {
  while (count != 0) {
    const ssize_t written = ::write(fd, bytes, count);
    if (written < 0 && errno == EAGAIN) {
      pollfd ready{fd, POLLOUT, 0};
      ::poll(&ready, 1, -1);
      continue;
    }
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes += written;
    count -= static_cast<size_t>(written);
  }
  return true;
}

}  // namespace

RawTerminal::RawTerminal() {
  termios mode{};
  if (::isatty(STDIN_FILENO) == 0 || ::tcgetattr(STDIN_FILENO, &mode) != 0) return;
  saved_ = mode;
  ::cfmakeraw(&mode);
  mode.c_oflag |= OPOST;  // the launcher's own lines still need their carriage returns
  ::tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

RawTerminal::~RawTerminal() {
  if (saved_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &*saved_);
}

StdioConsole::StdioConsole() {
  auto ends = MakeSocketPair();
  our_end_ = std::move(ends.first);
  guest_end_ = std::move(ends.second);
}

void StdioConsole::Start(bool raw, Keys keys) {
  output_ = std::thread([this] { CarryOutput(); });
  // It may sit in a read of the terminal for ever, so it ends with the process.
  std::thread([this, raw, keys = std::move(keys)] { CarryInput(raw, keys); }).detach();
}

void StdioConsole::Drain() {
  guest_end_.Close();
  if (output_.joinable()) output_.join();
}

void StdioConsole::CarryOutput() {
  std::array<char, 4096> bytes;
  bool listening = true;
  for (;;) {
    const ssize_t count = ::read(our_end_.get(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    // A closed stdout must not stop the guest: what it says is then lost.
    if (listening) listening = WriteAll(STDOUT_FILENO, bytes.data(), static_cast<size_t>(count));
  }
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

void StdioConsole::CarryInput(bool raw, const Keys& keys) {
  std::array<char, 4096> bytes;
  bool after_prefix = false;
  for (;;) {
    const ssize_t count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    std::string out;
    for (ssize_t i = 0; i < count; ++i) {
      if (!raw) {
        out += bytes[static_cast<size_t>(i)];
      } else if (!TakeKey(bytes[static_cast<size_t>(i)], after_prefix, keys, out)) {
        return;
      }
    }
    if (!WriteAll(our_end_.get(), out.data(), out.size())) return;
  }
  // End of input is not the end of the VM; the guest just hears no more.
  ::shutdown(our_end_.get(), SHUT_WR);
}

}  // namespace bulkhead::launcher
