// SPDX-License-Identifier: Apache-2.0
// The user's terminal, or whatever stdin and stdout are, joined to a guest's console. The terminal stays the
// launcher's: the console process only has one end of a socketpair. Two threads of the launcher carry the bytes; what
// the guest writes is passed on as it is.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "broker/launcher/terminal.h"
#include "ipc/fd.h"

namespace bulkhead::launcher {

class StdioConsole {
 public:
  struct Keys {
    std::function<void()> quit;          // Ctrl-a x; called on the reading thread
    std::function<void()> power_button;  // Ctrl-a s
  };

  StdioConsole();
  ~StdioConsole();  // what is still unwritten is lost
  StdioConsole(const StdioConsole&) = delete;
  StdioConsole& operator=(const StdioConsole&) = delete;

  // The guest's end; given away once, before Start.
  OwnFd TakeGuestEnd() { return std::move(guest_end_); }
  void StartOutput();
  // From a terminal, Ctrl-a starts a command to the launcher. `terminal` and `keys` are used until StopInput returns.
  void StartInput(const RawTerminal& terminal, Keys keys);
  void StopInput();
  bool carries_output() const { return output_.joinable(); }
  // An eventfd that is signalled when the guest's end is closed and all that came from it is written.
  int output_ended() const { return output_ended_.get(); }

 private:
  void CarryInput(const RawTerminal& terminal, const Keys& keys);
  void CarryOutput();
  // Takes one byte of the terminal's; false after the command that ends everything.
  bool TakeKey(char key, bool& after_prefix, const Keys& keys, std::string& out);

  OwnFd our_end_;
  OwnFd guest_end_;
  OwnFd stop_input_;
  OwnFd stop_output_;
  OwnFd output_ended_;
  std::thread input_;
  std::thread output_;
};

}  // namespace bulkhead::launcher
