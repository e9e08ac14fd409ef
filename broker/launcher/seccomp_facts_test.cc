// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/seccomp_facts.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "ipc/fd.h"
#include "ipc/syscall_policy.h"

namespace bulkhead::launcher {
namespace {

SyscallPolicy EchoPolicy() {
  SyscallPolicy policy;
  policy.Allow(SYS_read, "test");
  policy.Allow(SYS_write, "test");
  policy.Allow(SYS_restart_syscall, "test");
  policy.Allow(SYS_exit_group, "test");
  policy.Allow(SYS_prctl, "test");
  policy.Allow(SYS_seccomp, "test");
  return policy;
}

// A process with `filters` filters that sends back what it is sent.
class Echo {
 public:
  explicit Echo(int filters) {
    int there[2];
    int back[2];
    if (::pipe2(there, O_CLOEXEC) != 0 || ::pipe2(back, O_CLOEXEC) != 0) ThrowErrno("pipe");
    OwnFd input(there[0]);
    OwnFd output(back[1]);
    to_ = OwnFd(there[1]);
    from_ = OwnFd(back[0]);
    pid_ = ::fork();
    if (pid_ != 0) {
      Answers();
      return;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const std::string program = EchoPolicy().Program(OnViolation::kKill);
    const sock_fprog filter{.len = static_cast<unsigned short>(program.size() / sizeof(sock_filter)),
                            .filter = reinterpret_cast<sock_filter*>(const_cast<char*>(program.data()))};
    for (int i = 0; i < filters; ++i) {
      if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) ::_exit(1);
    }
    for (char byte;;) {
      if (::read(input.get(), &byte, 1) != 1 || ::write(output.get(), &byte, 1) != 1) ::_exit(1);
    }
  }
  ~Echo() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  void Send() { ASSERT_EQ(::write(to_.get(), "x", 1), 1); }
  bool Receive() {
    char byte = 0;
    return ::read(from_.get(), &byte, 1) == 1 && byte == 'x';
  }
  bool Answers() { return ::write(to_.get(), "x", 1) == 1 && Receive(); }
  char State() const {
    std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("State:\t")) return line.at(7);
    }
    return '?';
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  OwnFd to_;
  OwnFd from_;
};

class SeccompFacts : public testing::Test {
 protected:
  void SetUp() override {
    const Echo echo(1);
    const auto program = ReadSeccompProgram(echo.pid());
    if (!program.ok() && (program.error().code == EPERM || program.error().code == EACCES)) {
      GTEST_SKIP() << "only root outside of any system call filter may read filters";
    }
  }
};

TEST_F(SeccompFacts, TheKernelHasTheProgramThatWasInstalled) {
  Echo echo(1);
  const auto program = ReadSeccompProgram(echo.pid());
  ASSERT_TRUE(program.ok()) << program.error().message;
  EXPECT_EQ(*program, EchoPolicy().Program(OnViolation::kKill));
  EXPECT_NE(*program, EchoPolicy().Program(OnViolation::kReport));
}

TEST_F(SeccompFacts, TheProcessGoesOnWhereItWas) {
  Echo echo(1);
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(ReadSeccompProgram(echo.pid()).ok());
    ASSERT_TRUE(echo.Answers());
  }
}

TEST_F(SeccompFacts, AStoppedProcessStaysStopped) {
  Echo echo(1);
  ASSERT_EQ(::kill(echo.pid(), SIGSTOP), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(echo.pid(), &status, WUNTRACED), echo.pid());
  EXPECT_TRUE(ReadSeccompProgram(echo.pid()).ok());
  // It wakes to stop again.
  while (echo.State() == 't' || echo.State() == 'R') {
  }
  EXPECT_EQ(echo.State(), 'T');
  echo.Send();
  ::kill(echo.pid(), SIGCONT);
  EXPECT_TRUE(echo.Receive());
}

TEST_F(SeccompFacts, OneFilterIsExpected) {
  Echo none(0);
  EXPECT_FALSE(ReadSeccompProgram(none.pid()).ok());
  EXPECT_TRUE(none.Answers());
  Echo two(2);
  const auto program = ReadSeccompProgram(two.pid());
  ASSERT_FALSE(program.ok());
  EXPECT_NE(program.error().message.find("more than one"), std::string::npos) << program.error().message;
  EXPECT_TRUE(two.Answers());
}

TEST_F(SeccompFacts, AProcessThatIsGoneIsAnError) {
  pid_t pid;
  {
    const Echo echo(1);
    pid = echo.pid();
  }
  EXPECT_FALSE(ReadSeccompProgram(pid).ok());
}

}  // namespace
}  // namespace bulkhead::launcher
