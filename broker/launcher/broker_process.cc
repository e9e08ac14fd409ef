// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/broker_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "broker/launcher/runtime_dir.h"

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

// As of a command that a shell cannot start.
constexpr int kNotStarted = 127;
constexpr const char* kBroker = "bulkhead-broker";

[[noreturn]] void ExecBroker(const std::string& program, const std::string& title, int control_fd) {
  // Aside first: the connection may sit at one of the numbers that are given away here.
  const int aside = ::fcntl(control_fd, F_DUPFD_CLOEXEC, kControlFd + 1);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (aside < 0 || null < 0 || ::dup2(null, STDIN_FILENO) < 0 || ::dup2(STDERR_FILENO, STDOUT_FILENO) < 0 ||
      ::dup2(aside, kControlFd) < 0) {
    ::_exit(kNotStarted);
  }
  ::syscall(SYS_close_range, kControlFd + 1, ~0U, 0);
  // The launcher blocks the signals it waits for; the broker must not start with them blocked.
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execl(program.c_str(), title.c_str(), nullptr);
  ::_exit(kNotStarted);
}

}  // namespace

std::string HelpersDirectory() {
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  for (const fs::path& place : {here / "libexec", here.parent_path() / "libexec" / "bulkhead"}) {
    if (::access((place / kBroker).c_str(), X_OK) == 0) return place;
  }
  throw FatalError("find bulkhead-broker: it is neither in " + (here / "libexec").string() + " nor in " +
                   (here.parent_path() / "libexec/bulkhead").string() + "; build or install Bulkhead completely");
}

BrokerProcess::BrokerProcess(kj::AsyncIoContext& io, const std::string& title) {
  const std::string program = HelpersDirectory() + "/" + kBroker;
  auto [ours, theirs] = MakeSocketPair();
  pid_ = ::fork();
  if (pid_ < 0) ThrowErrno("start the broker");
  if (pid_ == 0) ExecBroker(program, title, theirs.get());
  connection_.emplace(*io.lowLevelProvider, std::move(ours));
}

void BrokerProcess::Finish() {
  connection_.reset();
  if (!reaped_) ::waitpid(pid_, &status_, 0);
  reaped_ = true;
}

bool BrokerProcess::HandedOver() {
  Finish();
  return WIFEXITED(status_) && WEXITSTATUS(status_) == control::HAND_OVER_STATUS;
}

std::string BrokerProcess::DescribeEnd() {
  Finish();
  const int status = status_;
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNotStarted) {
    return "start the broker: it cannot be executed; check that its file is whole and its file system not mounted "
           "noexec";
  }
  const std::string how = WIFSIGNALED(status) ? "killed by signal " + std::to_string(WTERMSIG(status))
                                              : "status " + std::to_string(WEXITSTATUS(status));
  return "the broker ended unexpectedly (" + how + ")";
}

VmConnection::VmConnection(kj::AsyncIoContext& io, const std::string& name, RuntimeDir::Whose whose) {
  const RuntimeDir directory(whose);
  const auto names = directory.LiveNames();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    std::string known;
    for (const std::string& each : names) known += (known.empty() ? "" : ", ") + each;
    throw FatalError("VM '" + name + "': there is none of this name" +
                     (known.empty() ? "; no VM is running" : "; running are " + known));
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = directory.SocketOf(name);
  if (path.size() >= sizeof address.sun_path) throw FatalError("control socket: the path " + path + " is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  OwnFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid() || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw FatalError("VM '" + name + "': it is just starting or ending; try again");
  }
  ucred broker{};
  socklen_t size = sizeof broker;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &broker, &size) != 0) ThrowErrno("VM '" + name + "'");
  // The socket of another user's directory may be a link to anywhere.
  if (broker.uid != directory.owner()) {
    throw FatalError("VM '" + name + "': its control socket is user " + std::to_string(broker.uid) +
                     "'s, but the runtime directory user " + std::to_string(directory.owner()) + "'s");
  }
  broker_pid_ = broker.pid;
  connection_.emplace(*io.lowLevelProvider, std::move(socket));
}

}  // namespace bulkhead::launcher
