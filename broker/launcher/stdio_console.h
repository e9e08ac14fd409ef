// SPDX-License-Identifier: Apache-2.0
// The user's terminal, or whatever stdin and stdout are, joined to a guest's console. The terminal stays the launcher's: the
// console process only has one end of a socketpair. Two threads of the launcher carry the bytes.
#pragma once

#include <termios.h>

#include <functional>
#include <optional>
#include <thread>

#include "ipc/fd.h"

namespace bulkhead::launcher {

// Raw mode of the terminal on stdin, if it is one, for as long as this lives.
class RawTerminal {
 public:
  RawTerminal();
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;
  bool active() const { return saved_.has_value(); }

 private:
  std::optional<termios> saved_;
};

class StdioConsole {
 public:
  struct Keys {
    std::function<void()> quit;          // Ctrl-a x; called on the reading thread
    std::function<void()> power_button;  // Ctrl-a s
  };

  StdioConsole();
  // The guest's end; given away once, before Start.
  OwnFd TakeGuestEnd() { return std::move(guest_end_); }
  // Begins to carry bytes. With `raw`, Ctrl-a starts a command to the launcher.
  void Start(bool raw, Keys keys);
  // Writes what the guest's side still holds, until that side is closed.
  void Drain();

 private:
  void CarryInput(bool raw, const Keys& keys);
  void CarryOutput();
  bool TakeKey(char key, bool& after_prefix, const Keys& keys, std::string& out);

  OwnFd our_end_;
  OwnFd guest_end_;
  std::thread output_;
};

}  // namespace bulkhead::launcher
