// SPDX-License-Identifier: Apache-2.0
#include "broker/spawn.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "ipc/broker_link.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

constexpr int kExecFd = kSpareFd + 1;
constexpr uint64_t kNamespaces = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;

std::pair<OwnFd, OwnFd> MakePipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) ThrowErrno("create a pipe");
  return {OwnFd(ends[0]), OwnFd(ends[1])};
}

// Between clone and exec: only async-signal-safe calls; a failed step ends the child with its number.
[[noreturn]] void ExecChild(int go_fd, int null_fd, int log_fd, int control_fd, int spare_fd, int exec_fd,
                            char* title) {
  // The parent has written the id maps when it says go; end of file means that it failed.
  char go;
  if (::read(go_fd, &go, 1) != 1) ::_exit(120);
  // The C library's own would have all threads of the parent do the same, which are not here.
  ::syscall(SYS_setgroups, 0, nullptr);  // refused, and not needed, where the parent had to deny setgroups
  if (::syscall(SYS_setresgid, 0, 0, 0) != 0 || ::syscall(SYS_setresuid, 0, 0, 0) != 0) ::_exit(121);
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) ::_exit(122);
  if (::sethostname("bulkhead", 8) != 0) ::_exit(123);
  // Not with clone: the root of the namespace would be the broker's cgroup, not the one that the child is born in.
  if (::unshare(CLONE_NEWCGROUP) != 0) ::_exit(119);

  // First to numbers above all those that are given away, then to the numbers the child knows.
  std::array<int, 6> sources{null_fd, null_fd, log_fd, control_fd, spare_fd, exec_fd};
  for (int& source : sources) {
    source = ::fcntl(source, F_DUPFD_CLOEXEC, static_cast<int>(sources.size()));
    if (source < 0) ::_exit(124);
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    const int target = static_cast<int>(i);
    if (::dup3(sources[i], target, target == kExecFd ? O_CLOEXEC : 0) < 0) ::_exit(125);
  }
  ::syscall(SYS_close_range, kExecFd + 1, ~0U, 0);
  ::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  char* const arguments[] = {title, nullptr};
  char* const environment[] = {nullptr};
  ::syscall(SYS_execveat, kExecFd, "", arguments, environment, AT_EMPTY_PATH);
  ::_exit(126);
}

void WriteProcFile(pid_t pid, const char* name, const std::string& text) {
  const std::string path = "/proc/" + std::to_string(pid) + "/" + name;
  OwnFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid() || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    ThrowErrno("map the user of a child process (" + path + ")");
  }
}

void WriteIdMaps(pid_t pid, std::optional<uint32_t> uid) {
  // user_namespaces(7): without privilege only one's own ids can be mapped, and setgroups must be given up first.
  if (!uid) WriteProcFile(pid, "setgroups", "deny");
  WriteProcFile(pid, "gid_map", "0 " + std::to_string(uid.value_or(::getegid())) + " 1");
  WriteProcFile(pid, "uid_map", "0 " + std::to_string(uid.value_or(::geteuid())) + " 1");
}

[[noreturn]] void ThrowCloneError(int code) {
  if (code == EPERM) {
    throw FatalError(
        "create a sandbox: this host forbids user namespaces; allow them with `sysctl "
        "kernel.unprivileged_userns_clone=1`"
        " (Debian) or `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), or start Bulkhead outside of"
        " the chroot or container that forbids them",
        code);
  }
  if (code == ENOSPC || code == EUSERS) {
    throw FatalError(
        "create a sandbox: no user namespace is left; raise them with `sysctl user.max_user_namespaces=15000`", code);
  }
  throw FatalError(ErrnoError(code, "start a child process (clone3)"));
}

}  // namespace

OwnFd OpenProgram(const std::string& executable) {
  OwnFd program(::open(executable.c_str(), O_PATH | O_CLOEXEC));
  if (!program.valid()) ThrowErrno("find " + executable + " (is Bulkhead installed completely?)");
  return program;
}

ChildProcess SpawnChild(const std::string& executable, const std::string& title, const Birthplace& place) {
  return SpawnProgram(OpenProgram(executable), title, place);
}

ChildProcess SpawnProgram(const OwnFd& program, const std::string& title, const Birthplace& place) {
  OwnFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) ThrowErrno("open /dev/null");
  auto [log_read, log_write] = MakePipe();
  auto [go_read, go_write] = MakePipe();
  auto [ours, theirs] = MakeSocketPair();
  auto [spare, their_spare] = MakeSpareSockets();
  std::string argument = title;

  int pidfd = -1;
  clone_args clone{};
  clone.flags = kNamespaces | (place.keeps_network ? 0 : CLONE_NEWNET) | CLONE_PIDFD;
  clone.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  clone.exit_signal = SIGCHLD;
  if (place.cgroup.valid()) {
    clone.flags |= CLONE_INTO_CGROUP;
    clone.cgroup = static_cast<uint64_t>(place.cgroup.get());
  }
  const auto pid = static_cast<pid_t>(::syscall(SYS_clone3, &clone, sizeof clone));
  if (pid < 0) ThrowCloneError(errno);
  if (pid == 0) {
    go_write.Close();  // else our own copy would hide the parent's end of file
    ExecChild(go_read.get(), null.get(), log_write.get(), theirs.get(), their_spare.get(), program.get(),
              argument.data());
  }
  ChildProcess child{.pid = pid,
                     .pidfd = OwnFd(pidfd),
                     .control = std::move(ours),
                     .log = std::move(log_read),
                     .spare = std::move(spare)};
  try {
    WriteIdMaps(pid, place.uid);
  } catch (...) {
    go_write.Close();
    ::waitpid(pid, nullptr, 0);
    throw;
  }
  const char go = 1;
  if (::write(go_write.get(), &go, 1) != 1) ThrowErrno("start a child process");
  return child;
}

}  // namespace bulkhead::broker
