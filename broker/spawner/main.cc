// SPDX-License-Identifier: Apache-2.0
// bulkhead-spawner: starts the processes of a VM, the first ones and those that take their place later, for a broker
// that has locked itself down by then. They are its children, and so live no longer than it does, but longer than a
// broker that crashes or is upgraded: it keeps what the next one needs to go on, without a look at any of it, for as
// long as somebody (the broker, or the launcher that would start the next one) has the other end of its socket. It
// reads nothing but the broker's messages, and forgets nothing that it was told before the broker's lock-down
// (protocol.h). It has no system call filter and no Landlock domain, as each child would inherit them and needs more
// before its own lock-down.
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <optional>

#include "broker/spawn.h"
#include "broker/spawner/protocol.h"
#include "broker/violations.h"
#include "ipc/broker_link.h"
#include "ipc/child.h"
#include "ipc/fd_message.h"
#include "ipc/rpc.h"
#include "ipc/sandbox.h"
#include "ipc/start_up_memory.h"

namespace bulkhead::broker {
namespace {

struct Program {
  std::string executable;
  OwnFd file;     // as it was when it was enrolled, or kept last
  OwnFd renewed;  // as it was found installed last
  std::string title;
  Birthplace place;
};

// The process of a program that was started last.
struct Running {
  pid_t pid = -1;
  OwnFd pidfd;
  OwnFd log;
  OwnFd spare;
  OwnFd listener;                // invalid: not taken yet, or none
  std::optional<siginfo_t> end;  // once it was asked for
};

int signal_changes_fd = -1;

// Async-signal-safe.
void SignalChange(int) {
  const int before = errno;
  const uint64_t one = 1;
  (void)!::write(signal_changes_fd, &one, sizeof one);
  errno = before;
}

class Spawner {
 public:
  Spawner() : changes_(OrThrow(MakeEventFd())) {
    signal_changes_fd = changes_.get();
    struct sigaction action {};
    action.sa_handler = SignalChange;
    action.sa_flags = SA_RESTART;
    if (::sigaction(SIGCHLD, &action, nullptr) != 0) ThrowErrno("watch for the end of processes");
  }

  void Serve() {
    const OwnFd socket(kSpawnerFd);
    for (;;) {
      SpawnerRequest request;
      std::vector<OwnFd> fds;
      if (!ReceiveMessage(socket, &request, sizeof request, fds).ok()) return;
      if (Told(request, fds)) continue;
      SpawnerReply reply{.id = request.id};
      std::vector<int> given;
      try {
        given = Answer(request, fds, reply);
      } catch (const FatalError& error) {
        reply.code = error.code() != 0 ? error.code() : EINVAL;
        PutText(reply.message, error.what());
      }
      const auto sent = SendMessage(socket, &reply, sizeof reply, given);
      fresh_.clear();
      if (!sent.ok()) return;
    }
  }

 private:
  // Whether it is none of those that are answered.
  bool Told(const SpawnerRequest& request, std::vector<OwnFd>& fds) {
    switch (request.kind) {
      case SpawnerRequest::kEnroll:
        Enroll(request, fds);
        return true;
      case SpawnerRequest::kSeal:
        sealed_ = true;
        return true;
      case SpawnerRequest::kSettle:
        ForgetStartUpMemory();
        return true;
      default:
        return false;
    }
  }

  void Enroll(const SpawnerRequest& request, std::vector<OwnFd>& fds) {
    if (sealed_ || programs_.size() == kMaxPrograms) return;
    Program& program = programs_.emplace_back();
    program.executable = GetText(request.executable);
    program.title = GetText(request.title);
    program.file = OpenProgram(program.executable);
    if (!fds.empty()) program.place.cgroup = std::move(fds[0]);
    if (request.has_uid) program.place.uid = request.uid;
    program.place.keeps_network = request.keeps_network;
  }

  // The descriptors of the answer, which are this process's own.
  std::vector<int> Answer(const SpawnerRequest& request, std::vector<OwnFd>& fds, SpawnerReply& reply) {
    switch (request.kind) {
      case SpawnerRequest::kChanges:
        return {changes_.get()};
      case SpawnerRequest::kStopped:
        reply.pid = FindStopped();
        return {};
      case SpawnerRequest::kStore:
        if (kept_.size() == kMaxKeys && !kept_.contains(request.number)) throw FatalError("too much to keep", ENOSPC);
        kept_[request.number] = std::move(fds);
        return {};
      case SpawnerRequest::kFetch:
        return Numbers(kept_[request.number]);
      case SpawnerRequest::kSpawn:
      case SpawnerRequest::kRenew:
        return Start(request, reply);
      case SpawnerRequest::kKeep:
        if (Program& program = Named(request.number); program.renewed.valid())
          program.file = std::move(program.renewed);
        return {};
      case SpawnerRequest::kListener: {
        Running& running = NamedRunning(request.number);
        running.listener = OrThrow(ViolationWatch::TakeListener(running.pidfd.get(), request.listener));
        return {running.listener.get()};
      }
      case SpawnerRequest::kAdopt:
        return Adopt(NamedRunning(request.number), reply);
      case SpawnerRequest::kReap:
        Reap(NamedRunning(request.number), reply);
        return {};
      default:
        throw FatalError("no such question");
    }
  }

  static std::vector<int> Numbers(const std::vector<OwnFd>& fds) {
    std::vector<int> numbers;
    for (const OwnFd& fd : fds) numbers.push_back(fd.get());
    return numbers;
  }
  // One that lives until the answer is sent.
  int Fresh(OwnFd fd) { return fresh_.emplace_back(std::move(fd)).get(); }

  Program& Named(uint32_t number) {
    if (number >= programs_.size()) throw FatalError("no such program");
    return programs_[number];
  }
  Running& NamedRunning(uint32_t number) {
    const auto running = running_.find(number);
    if (running == running_.end()) throw FatalError("no such process", ESRCH);
    return running->second;
  }

  std::vector<int> Start(const SpawnerRequest& request, SpawnerReply& reply) {
    Program& program = Named(request.number);
    const bool renew = request.kind == SpawnerRequest::kRenew;
    if (renew) program.renewed = OpenProgram(program.executable);
    // One at a time has the grants of a number.
    if (const auto before = running_.find(request.number); before != running_.end()) End(before->second);
    ChildProcess child = SpawnProgram(renew ? program.renewed : program.file, program.title, program.place);
    // The broker has no call left to make it so.
    ::fcntl(child.log.get(), F_SETFL, O_NONBLOCK);
    Running& running = running_[request.number];
    running = {.pid = child.pid,
               .pidfd = std::move(child.pidfd),
               .log = std::move(child.log),
               .spare = std::move(child.spare),
               .listener = {},
               .end = {}};
    reply.pid = running.pid;
    return {running.pidfd.get(), Fresh(std::move(child.control)), running.log.get()};
  }

  std::vector<int> Adopt(Running& running, SpawnerReply& reply) {
    reply.pid = running.pid;
    // One that has ended takes none: what the broker gets then hangs up at once.
    auto connection = SendConnection(running.spare);
    const int control = Fresh(connection.ok() ? *std::move(connection) : MakeSocketPair().first);
    std::vector<int> given{running.pidfd.get(), control, running.log.get()};
    if (running.listener.valid()) given.push_back(running.listener.get());
    return given;
  }

  static void End(Running& running) {
    if (running.end) return;
    ::syscall(SYS_pidfd_send_signal, running.pidfd.get(), SIGKILL, nullptr, 0);
    ::waitid(P_PIDFD, static_cast<id_t>(running.pidfd.get()), &running.end.emplace(), WEXITED);
  }

  static void Reap(Running& running, SpawnerReply& reply) {
    if (!running.end) {
      siginfo_t info{};
      ::waitid(P_PIDFD, static_cast<id_t>(running.pidfd.get()), &info, WEXITED | WNOHANG);
      if (info.si_pid == 0) throw FatalError("the process has not ended", EAGAIN);
      running.end = info;
    }
    reply.end_code = running.end->si_code;
    reply.end_status = running.end->si_status;
  }

  int32_t FindStopped() {
    for (auto& [number, running] : running_) {
      siginfo_t info{};
      if (running.end) continue;
      const auto pidfd = static_cast<id_t>(running.pidfd.get());
      if (::waitid(P_PIDFD, pidfd, &info, WSTOPPED | WNOHANG) == 0 && info.si_pid != 0) {
        return static_cast<int32_t>(number);
      }
    }
    return -1;
  }

  OwnFd changes_;
  std::vector<Program> programs_;
  std::map<uint32_t, Running> running_;          // by program
  std::map<uint32_t, std::vector<OwnFd>> kept_;  // by the broker's number
  std::vector<OwnFd> fresh_;
  bool sealed_ = false;
};

}  // namespace
}  // namespace bulkhead::broker

int main(int argc, char** argv) {
  using namespace bulkhead;
  try {
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP}) ::signal(number, SIG_IGN);
    NameProcess(argc > 0 ? argv[0] : "bulkhead spawner");
    LimitProcess({}, Tracing::kAllowed);
    // To give a child a user id of its own.
    KeepCapabilities({CAP_SETUID, CAP_SETGID});
    broker::Spawner().Serve();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argc > 0 ? argv[0] : "bulkhead spawner", error.what());
    return 1;
  }
}
