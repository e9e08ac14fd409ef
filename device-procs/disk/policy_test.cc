// SPDX-License-Identifier: Apache-2.0
// A disk at work behind its own filter: every operation that a guest can ask for passes, and the kernel's I/O threads,
// which do flushes and allocation, are not in its way.
#include "device-procs/disk/policy.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "device-procs/common/block/raw_image.h"
#include "device-procs/disk/disk_driver.h"
#include "ipc/sandbox.h"

namespace bulkhead::device {
namespace {

using test::DiskDriver;

// g++ and clang say it differently.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BULKHEAD_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(BULKHEAD_SANITIZED)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr int kNoNamespaces = 77;

bool NoNamespaces(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == kNoNamespaces; }

// Runs `body` in a process of its own, which locks itself down as a disk process does; its wait status.
template <typename Body>
int RunLockedDown(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    // As the broker starts children: with the rights over itself that giving up rights takes, whoever runs this.
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(kNoNamespaces);
    DropCapabilities();
    const GuestMemory memory = test::MakeGuestMemory(DiskDriver::kMemoryBytes);
    OwnFd file(::memfd_create("image", MFD_CLOEXEC));
    if (::ftruncate(file.get(), 8 << 20) != 0) ::_exit(2);
    DiskDriver disk(memory, OpenRawImage(std::move(file), {}), {.queues = 2, .sleep = false});
    ReserveHeap(size_t{32} << 20);
    LimitProcess({{RLIMIT_NOFILE, 512}, {RLIMIT_MEMLOCK, 0}});
    DiskPolicy().Install(OnViolation::kKill);
    disk.Start();
    const bool passed = body(disk);
    ::_exit(passed && !testing::Test::HasFailure() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(DiskPolicyTest, LetsADiskDoAllItsWork) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need more system calls than a disk";
  const int status = RunLockedDown([](DiskDriver& disk) {
    bool good = true;
    for (uint16_t queue = 0; queue < 2; ++queue) {
      good &= disk.Do(test::kBlkWrite, 0, {{DiskDriver::kData, 1 << 20}}, queue) == 0;
      good &= disk.Do(test::kBlkRead, 0, {{DiskDriver::kData, 1 << 20, true}}, queue) == 0;
      good &= disk.Do(test::kBlkFlush, 0, {}, queue) == 0;
    }
    good &= disk.DoSegments(test::kBlkDiscard, {{0, 64, 0}}) == 0;
    good &= disk.DoSegments(test::kBlkZeroes, {{0, 64, 1}, {64, 64, 0}}) == 0;
    disk.model().Pause();
    disk.model().Resume();
    disk.SetUp();
    return good && disk.Do(test::kBlkFlush, 0, {}) == 0;
  });
  if (NoNamespaces(status)) GTEST_SKIP() << "user namespaces are not allowed here";
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(DiskPolicyTest, LetsNoNewRingBeMade) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need more system calls than a disk";
  const int status = RunLockedDown([](DiskDriver&) {
    ::syscall(SYS_io_uring_setup, 8, nullptr);
    return true;
  });
  if (NoNamespaces(status)) GTEST_SKIP() << "user namespaces are not allowed here";
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGSYS);
}

}  // namespace
}  // namespace bulkhead::device
