// SPDX-License-Identifier: Apache-2.0
#include "broker/child_signals.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace bulkhead::broker {
namespace {

OwnFd MakeSignalFd() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  OwnFd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) ThrowErrno("create a signalfd");
  return signals;
}

}  // namespace

ChildSignals::ChildSignals(kj::UnixEventPort& port)
    : signals_(MakeSignalFd()), observer_(port, signals_.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ) {}

kj::Promise<void> ChildSignals::Next() {
  signalfd_siginfo info;
  bool any = false;
  while (::read(signals_.get(), &info, sizeof info) > 0) any = true;
  if (any) return kj::READY_NOW;
  return observer_.whenBecomesReadable().then([this] { return Next(); });
}

}  // namespace bulkhead::broker
