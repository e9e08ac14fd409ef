// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <thread>

#include "ipc/fd.h"

namespace bulkhead::launcher {
namespace {

constexpr size_t kGuestBytes = size_t{4} << 20;

// A process that has done `prepare` and then sleeps until the test ends.
class Subject {
 public:
  explicit Subject(const std::function<void()>& prepare) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) ThrowErrno("pipe");
    OwnFd read_end(ends[0]);
    OwnFd write_end(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      read_end.Close();
      prepare();
      if (::write(write_end.get(), "r", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    write_end.Close();
    char ready = 0;
    ready_ = ::read(read_end.get(), &ready, 1) == 1;
  }
  ~Subject() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  bool ready() const { return ready_; }
  ProcessFacts Facts() const { return ReadProcessFacts("subject", pid_); }

 private:
  pid_t pid_ = -1;
  bool ready_ = false;
};

void* MapMemfd(const char* name, size_t size_bytes, int protection) {
  const int fd = ::memfd_create(name, 0);
  if (::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) ::_exit(1);
  return ::mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0);
}

TEST(ProcessFacts, OwnProcessIsAsThisProcessKnowsItself) {
  const ProcessFacts facts = ReadProcessFacts("me", ::getpid());
  EXPECT_TRUE(facts.exists);
  EXPECT_EQ(facts.uids[1], ::geteuid());
  EXPECT_EQ(facts.gids[0], ::getgid());
  ASSERT_FALSE(facts.threads.empty());
  EXPECT_EQ(facts.threads.front().tid, ::getpid());
  ASSERT_TRUE(facts.namespaces);
  EXPECT_EQ(facts.namespaces->size(), std::size(kNamespaceKinds));
  for (const NamespaceFact& fact : *facts.namespaces) EXPECT_FALSE(fact.own) << fact.kind;
  EXPECT_FALSE(facts.root.only_mount && facts.root.read_only);
  EXPECT_EQ(facts.root.empty, false);
  EXPECT_TRUE(facts.hard_limits.count("Max core file size"));
  ASSERT_TRUE(facts.executable);
  EXPECT_NE(facts.executable->find('/'), std::string::npos);
  EXPECT_FALSE(facts.cgroup.path.empty() && ::access("/sys/fs/cgroup", F_OK) == 0);
}

TEST(ProcessFacts, AProcessThatIsNotThereDoesNotExist) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
  EXPECT_FALSE(ReadProcessFacts("zombie", pid).exists);
  ::waitpid(pid, nullptr, 0);
  const ProcessFacts facts = ReadProcessFacts("gone", pid);
  EXPECT_FALSE(facts.exists);
  EXPECT_FALSE(facts.descriptors);
  EXPECT_FALSE(facts.memory);
}

TEST(ProcessFacts, TheDiskForCloudInitIsAFileAndNoOtherMemoryIs) {
  const OwnFd seed(::memfd_create("cloud-init", MFD_CLOEXEC)), other(::memfd_create("cloud-init2", MFD_CLOEXEC));
  const auto own = ReadDescriptors(::getpid());
  ASSERT_TRUE(own);
  for (const Descriptor& fd : *own) {
    if (fd.number == seed.get()) {
      EXPECT_EQ(fd.kind, FdKind::kFile);
    } else if (fd.number == other.get()) {
      EXPECT_EQ(fd.kind, FdKind::kOtherMemory);
    }
  }
}

TEST(ProcessFacts, DescriptorsAreOfTheKindsTheyAre) {
  const Subject subject([] {
    ::memfd_create("guest-x", 0);
    ::memfd_create("exits-disk0", 0);
    ::memfd_create("scratch", 0);
    ::eventfd(0, 0);
    ::epoll_create1(0);
    ::timerfd_create(CLOCK_MONOTONIC, 0);
    ::inotify_init1(0);
    sigset_t none;
    ::sigemptyset(&none);
    ::signalfd(-1, &none, 0);
    ::syscall(SYS_pidfd_open, ::getpid(), 0);
    int pair[2];
    [[maybe_unused]] int made = ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    made = ::pipe(pair);
    ::open("/dev/null", O_RDWR);
    ::open("/dev/zero", O_RDWR);
    ::open("/", O_RDONLY | O_DIRECTORY);
    ::open("/proc/self/exe", O_RDONLY);
  });
  ASSERT_TRUE(subject.ready());
  const auto facts = subject.Facts();
  ASSERT_TRUE(facts.descriptors);
  const auto own = ReadDescriptors(::getpid());
  ASSERT_TRUE(own);
  const auto count = [](const std::vector<Descriptor>& all, FdKind kind) {
    return std::count_if(all.begin(), all.end(), [&](const Descriptor& fd) { return fd.kind == kind; });
  };
  const auto more = [&](FdKind kind) { return count(*facts.descriptors, kind) - count(*own, kind); };
  for (const FdKind kind : {FdKind::kGuestMemory, FdKind::kExitRing, FdKind::kOtherMemory, FdKind::kEventfd,
                            FdKind::kEpoll, FdKind::kTimerfd, FdKind::kInotify, FdKind::kSignalfd, FdKind::kPidfd,
                            FdKind::kNull, FdKind::kTerminal, FdKind::kDirectory, FdKind::kFile}) {
    EXPECT_EQ(more(kind), 1) << FdKindName(kind);
  }
  EXPECT_EQ(more(FdKind::kSocket), 2);
  EXPECT_EQ(more(FdKind::kPipe), 2 + 1);  // and the one to this test
  EXPECT_EQ(more(FdKind::kOther), 0);
  EXPECT_EQ(more(FdKind::kKvm), 0);
  const auto guest = std::find_if(facts.descriptors->begin(), facts.descriptors->end(),
                                  [](const Descriptor& fd) { return fd.kind == FdKind::kGuestMemory; });
  EXPECT_EQ(guest->target, "memfd:guest-x");
}

TEST(ProcessFacts, GuestMemoryIsMeasuredAndExecutableWritableMemoryFound) {
  const Subject subject([] {
    MapMemfd("guest-x", kGuestBytes, PROT_READ | PROT_WRITE);
    MapMemfd("guest-x", kGuestBytes, PROT_READ);
    MapMemfd("other", kGuestBytes, PROT_READ);
    ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  });
  ASSERT_TRUE(subject.ready());
  const auto memory = subject.Facts().memory;
  ASSERT_TRUE(memory);
  EXPECT_EQ(GuestMemoryBytes(*memory), 2 * kGuestBytes);
  ASSERT_EQ(memory->guest_memory.size(), 2U);
  std::vector<std::string> rights{memory->guest_memory[0].rights, memory->guest_memory[1].rights};
  std::sort(rights.begin(), rights.end());
  EXPECT_EQ(rights, (std::vector<std::string>{"r--s", "rw-s"}));
  EXPECT_EQ(memory->writable_executable.size(), 1U);
}

TEST(ProcessFacts, EachThreadHasFactsOfItsOwn) {
  const Subject subject([] {
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(1);
    std::thread([&] {
      ::prctl(PR_SET_NAME, "wall\x1b");
      ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      [[maybe_unused]] ssize_t written = ::write(ends[1], "r", 1);
      for (;;) ::pause();
    }).detach();
    char ready;
    if (::read(ends[0], &ready, 1) != 1) ::_exit(1);
  });
  ASSERT_TRUE(subject.ready());
  const auto threads = subject.Facts().threads;
  ASSERT_EQ(threads.size(), 2U);
  EXPECT_FALSE(threads[0].no_new_privs);
  EXPECT_TRUE(threads[1].no_new_privs);
  EXPECT_EQ(threads[1].name, "wall?");
  EXPECT_EQ(threads[0].seccomp_mode, threads[1].seccomp_mode);
}

TEST(ProcessFacts, OwnNamespacesAreTold) {
  const Subject subject([] {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWUTS) != 0) ::_exit(1);
  });
  if (!subject.ready()) GTEST_SKIP() << "this host forbids user namespaces";
  const auto namespaces = subject.Facts().namespaces;
  ASSERT_TRUE(namespaces);
  for (const NamespaceFact& fact : *namespaces) EXPECT_EQ(fact.own, fact.kind == "user" || fact.kind == "uts");
}

TEST(ProcessFacts, WhatAnotherUserMayNotSeeIsAbsent) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become somebody else";
  const pid_t observer = ::fork();
  if (observer == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(1);
    const ProcessFacts facts = ReadProcessFacts("root's", ::getppid());
    const bool seen = facts.descriptors || facts.memory || facts.namespaces || facts.root.empty || facts.executable;
    ::_exit(facts.exists && !facts.threads.empty() && !facts.hard_limits.empty() && !seen ? 0 : 2);
  }
  int status = -1;
  ::waitpid(observer, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(MemoryFacts, ShareOfMemoryLeavesGuestMemoryOut) {
  std::istringstream smaps(
      "55555d69d000-55555d6e0000 rw-p 00000000 00:00 0                          [heap]\n"
      "Size:                268 kB\nPss:                  40 kB\nPss_Dirty:            40 kB\nVmFlags: rd wr\n"
      "7f9f0d400000-7f9f15400000 rw-s 00000000 fe:00 13908                      /memfd:guest-file\n"
      "Pss:                   2 kB\n");
  const MemoryFacts memory = ParseMemoryFacts(smaps);
  // A file of some other file system that has such a name is no guest memory.
  EXPECT_TRUE(memory.guest_memory.empty());
  EXPECT_EQ(memory.own_pss_kb, 42U);
}

}  // namespace
}  // namespace bulkhead::launcher
