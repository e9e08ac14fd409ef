// SPDX-License-Identifier: Apache-2.0
// bulkhead-spawner: starts device processes in the place of those that died or are to be upgraded, for a broker that
// has locked itself down and can start none. A child of the broker, with its rights: so it does nothing else, reads
// nothing but the broker's packets, and forgets nothing that it was told before the broker's lock-down (protocol.h). It
// has no system call filter and no Landlock domain, as each child would inherit them and needs more before its own
// lock-down. It ends with the broker.
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstdio>

#include "broker/spawn.h"
#include "broker/spawner/protocol.h"
#include "broker/violations.h"
#include "ipc/child.h"
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

class Spawner {
 public:
  void Serve() {
    const OwnFd socket(kSpawnerFd);
    for (;;) {
      SpawnerRequest request;
      std::vector<OwnFd> fds;
      if (!ReceivePacket(socket, &request, sizeof request, fds).ok()) return;
      if (request.kind == SpawnerRequest::kEnroll || request.kind == SpawnerRequest::kSeal) {
        Enroll(request, fds);
        continue;
      }
      SpawnerReply reply;
      std::vector<OwnFd> given;
      try {
        given = Carry(request, fds, reply);
      } catch (const FatalError& error) {
        reply.code = error.code() != 0 ? error.code() : EINVAL;
        PutText(reply.message, error.what());
      }
      std::vector<int> numbers;
      for (const OwnFd& fd : given) numbers.push_back(fd.get());
      if (!SendPacket(socket, &reply, sizeof reply, numbers).ok()) return;
    }
  }

 private:
  void Enroll(const SpawnerRequest& request, std::vector<OwnFd>& fds) {
    if (request.kind == SpawnerRequest::kSeal && !std::exchange(sealed_, true)) ForgetStartUpMemory();
    if (sealed_ || programs_.size() == kMaxPrograms) return;
    Program& program = programs_.emplace_back();
    program.executable = GetText(request.executable);
    program.title = GetText(request.title);
    program.file = OpenProgram(program.executable);
    if (!fds.empty()) program.place.cgroup = std::move(fds[0]);
    if (request.has_uid) program.place.uid = request.uid;
    program.place.keeps_network = request.keeps_network;
  }

  std::vector<OwnFd> Carry(const SpawnerRequest& request, const std::vector<OwnFd>& fds, SpawnerReply& reply) {
    std::vector<OwnFd> given;
    if (request.kind == SpawnerRequest::kListener) {
      if (fds.size() != 1) throw FatalError("no process was named");
      given.push_back(OrThrow(ViolationWatch::TakeListener(fds[0], static_cast<int>(request.number))));
      return given;
    }
    if (request.number >= programs_.size()) throw FatalError("no such program");
    Program& program = programs_[request.number];
    if (request.kind == SpawnerRequest::kKeep) {
      if (program.renewed.valid()) program.file = std::move(program.renewed);
      return given;
    }
    const bool renew = request.kind == SpawnerRequest::kRenew;
    if (renew) program.renewed = OpenProgram(program.executable);
    ChildProcess child =
        SpawnProgram(renew ? program.renewed : program.file, program.title, program.place, ParentIs::kParent);
    reply.pid = child.pid;
    // The broker has no call left to make it so.
    ::fcntl(child.log.get(), F_SETFL, O_NONBLOCK);
    given.push_back(std::move(child.pidfd));
    given.push_back(std::move(child.control));
    given.push_back(std::move(child.log));
    return given;
  }

  std::vector<Program> programs_;
  bool sealed_ = false;
};

}  // namespace
}  // namespace bulkhead::broker

int main(int argc, char** argv) {
  using namespace bulkhead;
  try {
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP}) ::signal(number, SIG_IGN);
    if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) ThrowErrno("end with the broker");
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
