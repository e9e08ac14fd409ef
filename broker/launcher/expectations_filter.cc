// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/expectations_filter.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>

#include "ipc/fd.h"

namespace bulkhead::launcher {
namespace {

// What the executable writes to its standard output; nothing of this process is given to it but /dev/null.
Result<std::string> RunForOutput(const std::string& executable, const std::string& argument) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoError(errno, "create a pipe");
  const OwnFd read_end(ends[0]);
  OwnFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::string name = executable;
  std::string option = argument;
  char* const arguments[] = {name.data(), option.data(), nullptr};
  char* const environment[] = {nullptr};
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, executable.c_str(), &actions, nullptr, arguments, environment);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return ErrnoError(error, "run " + executable);
  write_end.Close();
  std::string output;
  std::array<char, 4096> bytes;
  ssize_t count;
  while ((count = ::read(read_end.get(), bytes.data(), bytes.size())) > 0 || (count < 0 && errno == EINTR)) {
    if (count > 0) output.append(bytes.data(), static_cast<size_t>(count));
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return Error{EINVAL, executable + " " + argument + " failed"};
  return output;
}

}  // namespace

Result<std::vector<std::string>> ExpectedFilters(const std::string& executable) {
  std::vector<std::string> programs;
  for (const char* argument : {"--policy=bpf", "--policy=bpf-kill"}) {
    Result<std::string> program = RunForOutput(executable, argument);
    if (!program.ok()) return program.error();
    if (program->empty() || program->size() % sizeof(sock_filter) != 0) {
      return Error{EINVAL, executable + " " + argument + " printed no filter"};
    }
    programs.push_back(*std::move(program));
  }
  return programs;
}

}  // namespace bulkhead::launcher
