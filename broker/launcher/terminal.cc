// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/terminal.h"

#include <signal.h>
#include <unistd.h>

namespace bulkhead::launcher {
namespace {

// SIGINT, SIGTERM and SIGHUP are `bulkhead run`'s own and end it in the ordinary way.
constexpr int kFatal[] = {SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// What a signal handler needs can only be global. Written while no handler is installed.
termios saved_for_handler;

// tcsetattr and raise are async-signal-safe. SA_RESETHAND has put the default action back, which ends the process.
void RestoreAndDie(int number) {
  if (RawTerminal::InForeground()) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_for_handler);
  ::raise(number);
}

void HandleFatal(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  for (const int number : kFatal) ::sigaction(number, &action, nullptr);
}

}  // namespace

RawTerminal::RawTerminal() {
  termios mode{};
  if (::isatty(STDIN_FILENO) == 0 || ::tcgetattr(STDIN_FILENO, &mode) != 0) return;
  saved_ = mode;
  saved_for_handler = mode;
  // Sent to a background job that reads or sets the terminal; they would stop the VM with it.
  ::signal(SIGTTIN, SIG_IGN);
  ::signal(SIGTTOU, SIG_IGN);
  HandleFatal(RestoreAndDie, static_cast<int>(SA_RESETHAND));
  if (InForeground()) Enter();
}

bool RawTerminal::InForeground() {
  const pid_t foreground = ::tcgetpgrp(STDIN_FILENO);
  return foreground < 0 || foreground == ::getpgrp();  // < 0: it controls no jobs here
}

void RawTerminal::Enter() const {
  if (!saved_) return;
  termios mode = *saved_;
  ::cfmakeraw(&mode);
  mode.c_oflag |= OPOST;  // the launcher's own lines still need their carriage returns
  ::tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

RawTerminal::~RawTerminal() {
  if (!saved_) return;
  if (InForeground()) ::tcsetattr(STDIN_FILENO, TCSANOW, &*saved_);
  HandleFatal(SIG_DFL, 0);
}

}  // namespace bulkhead::launcher
