// SPDX-License-Identifier: Apache-2.0
// One supervised process: its connection, its log, its death. It is the spawner's child, or this process's own where it
// is no VM's. Broker, main thread. All that comes from it is hostile: its log is cut to lines, stripped of control
// characters and limited in rate.
#pragma once

#include <kj/async-unix.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "broker/spawn.h"
#include "broker/violations.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {

// The title of a VM's process in process lists.
std::string ChildTitle(const std::string& vm, const std::string& name);

// How a process ended: siginfo_t's si_code and si_status.
struct ProcessEnd {
  int code = 0;
  int status = 0;
};

// A process that somebody else has started, and will tell of.
struct Newborn {
  ChildProcess process;
  bool reports_violations = false;
  bool was_ready = false;  // for another broker
  OwnFd listener;          // of its system call filter, if another broker had taken that
  std::function<kj::Promise<OwnFd>(int listener)> take_listener;
  std::function<kj::Promise<ProcessEnd>()> reap;  // of one that has ended
};

class Child {
 public:
  // Starts the process; `host` is the capability it finds on its connection. `vm` and `name` go into its title and the
  // log. Log lines are held back until SetReady, since the last one is the reason if it dies before.
  Child(kj::AsyncIoContext& io, const std::string& executable, const std::string& vm, const std::string& name,
        capnp::Capability::Client host, const Birthplace& place);
  // The same with one that somebody else has started.
  Child(kj::AsyncIoContext& io, Newborn born, const std::string& vm, const std::string& name,
        capnp::Capability::Client host);
  ~Child();  // kills it, and waits for the end of this process's own child

  // Resolves when the process has ended, with a line that says how.
  kj::Promise<std::string> WhenDead() { return death_line_.addBranch(); }
  // Locked down. `violations` is what the child says of its filter's listener (control.capnp, SandboxReport).
  kj::Promise<void> SetReady(int violations);
  // Whether its violations are to be reported, and so will be.
  bool reports_violations() const { return reports_violations_; }
  void Kill();
  // Ends the connection, as if the broker were gone.
  void HangUp() {
    hang_up_task_ = nullptr;
    connection_.reset();
  }

  bool ended() const { return ended_; }
  pid_t pid() const { return process_.pid; }
  const std::string& name() const { return name_; }

 private:
  void WatchViolations(OwnFd listener);
  kj::Promise<void> ReadLog();
  void TakeLog(std::string_view bytes);
  void PrintLine();
  kj::Promise<std::string> AwaitDeath();
  std::string DescribeDeath(const ProcessEnd& end);

  kj::AsyncIoContext& io_;
  std::string vm_;
  std::string name_;
  ChildProcess process_;
  kj::UnixEventPort::FdObserver death_;
  kj::UnixEventPort::FdObserver log_;
  std::optional<RpcConnection> connection_;
  kj::Promise<void> hang_up_task_;  // goes before the connection
  kj::Promise<void> log_task_;
  const bool reports_violations_;
  const std::function<kj::Promise<OwnFd>(int)> take_listener_;
  const std::function<kj::Promise<ProcessEnd>()> reap_;
  kj::Canceler taking_;  // of the listener
  std::optional<ViolationWatch> violations_;
  kj::Promise<void> violation_task_;
  std::string violation_;
  std::string line_;
  std::string last_line_;
  bool ready_;
  bool ended_ = false;
  bool own_child_ = false;
  int64_t log_second_ = 0;
  int log_lines_ = 0;
  kj::ForkedPromise<std::string> death_line_;
};

}  // namespace bulkhead::broker
