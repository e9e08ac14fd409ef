// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/seccomp_facts.h"

#include <linux/filter.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include <vector>

namespace bulkhead::launcher {
namespace {

// A thread that sleeps uninterruptibly stops when it wakes: not waited for longer than this.
constexpr int kStopAttempts = 2000;
constexpr timespec kStopPause{.tv_sec = 0, .tv_nsec = 1'000'000};

// Traces the main thread of a process, stopped.
class Stopped {
 public:
  static Result<pid_t> Seize(pid_t pid) {
    if (::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0) return ErrnoError(errno, "look into its main thread");
    return pid;
  }

  explicit Stopped(pid_t pid) : pid_(pid) {}
  Stopped(const Stopped&) = delete;
  Stopped& operator=(const Stopped&) = delete;
  ~Stopped() {
    // A signal that stopped it in place of our interrupt is delivered now.
    if (stopped_) ::ptrace(PTRACE_DETACH, pid_, nullptr, signal_);
  }

  Result<void> Stop() {
    if (::ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) != 0) return ErrnoError(errno, "stop its main thread");
    for (int attempt = 0; attempt < kStopAttempts; ++attempt) {
      int status = 0;
      const pid_t waited = ::waitpid(pid_, &status, __WALL | WNOHANG);
      if (waited < 0) return ErrnoError(errno, "stop its main thread");
      if (waited == pid_) {
        if (!WIFSTOPPED(status)) return Error{ESRCH, "it ended"};
        stopped_ = true;
        // ptrace(2): a stop by PTRACE_INTERRUPT or a stop signal is an event, one on the way to a handler is not.
        signal_ = status >> 16 == 0 ? WSTOPSIG(status) : 0;
        return {};
      }
      ::nanosleep(&kStopPause, nullptr);
    }
    return Error{ETIMEDOUT, "its main thread hangs in the kernel"};
  }

 private:
  pid_t pid_;
  bool stopped_ = false;
  long signal_ = 0;
};

// PTRACE_SECCOMP_GET_FILTER: `index` counts from the oldest filter; without a buffer it tells the length.
Result<std::string> GetProgram(pid_t pid, unsigned long index) {
  const long count = ::ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index, nullptr);
  if (count < 0) return ErrnoError(errno, "read its system call filter");
  std::vector<sock_filter> program(static_cast<size_t>(count));
  if (::ptrace(PTRACE_SECCOMP_GET_FILTER, pid, index, program.data()) != count) {
    return ErrnoError(errno, "read its system call filter");
  }
  return std::string(reinterpret_cast<const char*>(program.data()), program.size() * sizeof(sock_filter));
}

}  // namespace

Result<std::string> ReadSeccompProgram(pid_t pid) {
  const Result<pid_t> seized = Stopped::Seize(pid);
  if (!seized.ok()) return seized.error();
  Stopped stopped(pid);
  const Result<void> stop = stopped.Stop();
  if (!stop.ok()) return stop.error();
  Result<std::string> program = GetProgram(pid, 0);
  if (!program.ok()) {
    if (program.error().code == ENOENT || program.error().code == EINVAL) return Error{ENOENT, "it has no filter"};
    return program;
  }
  if (GetProgram(pid, 1).ok()) return Error{EINVAL, "it has more than one filter"};
  return program;
}

}  // namespace bulkhead::launcher
