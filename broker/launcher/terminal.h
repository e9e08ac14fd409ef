// SPDX-License-Identifier: Apache-2.0
// The user's terminal in raw mode, and back. Launcher.
#pragma once

#include <termios.h>

#include <optional>

namespace bulkhead::launcher {

// Raw mode of the terminal on stdin, if it is one, for as long as this lives; also a fatal signal restores it. At most
// one exists. Made and destroyed on the main thread while nobody else uses it.
class RawTerminal {
 public:
  RawTerminal();
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;
  bool is_terminal() const { return saved_.has_value(); }
  // Whether the terminal is this job's to read and to set: a shell's background job must leave it alone. Any thread.
  static bool InForeground();
  // Sets raw mode: again, after the shell had the terminal. Any one thread.
  void Enter() const;

 private:
  std::optional<termios> saved_;
};

}  // namespace bulkhead::launcher
