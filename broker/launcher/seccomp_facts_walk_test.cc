// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/seccomp_facts_walk.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "ipc/syscall_policy.h"

namespace bulkhead::launcher {
namespace {

std::string Bytes(const std::vector<sock_filter>& program) {
  return {reinterpret_cast<const char*>(program.data()), program.size() * sizeof(sock_filter)};
}

TEST(SeccompWalk, FindsExactlyTheCallsOfAPolicy) {
  for (const OnViolation on_violation : {OnViolation::kKill, OnViolation::kReport}) {
    // Two rules, and then so many that libseccomp makes a tree of them.
    for (const int last : {SYS_write, SYS_readlink}) {
      SyscallPolicy policy;
      std::vector<int> numbers;
      for (int number = 0; number <= last; ++number) {
        policy.Allow(number, "test");
        numbers.push_back(number);
      }
      const AllowedCalls allowed = WalkSeccompProgram(policy.Program(on_violation));
      EXPECT_EQ(allowed.numbers, numbers);
      EXPECT_FALSE(allowed.other_tables);
      EXPECT_GT(allowed.instructions, 0U);
    }
  }
}

TEST(SeccompWalk, ACallAllowedWithSomeArgumentsIsAllowed) {
  SyscallPolicy policy;
  policy.AllowIoctl(0xAE80, "test");
  policy.Allow(SYS_mmap, "test", {MaskedEquals(2, PROT_EXEC, 0), Equals(3, MAP_PRIVATE)});
  policy.Allow(SYS_tgkill, "test", {Equals(0, 0x1'0000'0001)});
  EXPECT_EQ(WalkSeccompProgram(policy.Program(OnViolation::kKill)).numbers,
            (std::vector<int>{SYS_mmap, SYS_ioctl, SYS_tgkill}));
}

TEST(SeccompWalk, NothingAllowedIsNothingFound) {
  EXPECT_TRUE(WalkSeccompProgram(SyscallPolicy().Program(OnViolation::kReport)).numbers.empty());
}

TEST(SeccompWalk, ADenyListAllowsTheRest) {
  void* filter = ::seccomp_init(SCMP_ACT_ALLOW);
  ASSERT_EQ(::seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SYS_openat, 0), 0);
  const scmp_arg_cmp family{.arg = 0, .op = SCMP_CMP_EQ, .datum_a = 2, .datum_b = 0};
  ASSERT_EQ(::seccomp_rule_add_array(filter, SCMP_ACT_KILL_PROCESS, SYS_socket, 1, &family), 0);
  std::FILE* file = std::tmpfile();
  ASSERT_EQ(::seccomp_export_bpf(filter, ::fileno(file)), 0);
  ::seccomp_release(filter);
  std::string program(static_cast<size_t>(::lseek(::fileno(file), 0, SEEK_END)), '\0');
  ASSERT_GT(::pread(::fileno(file), program.data(), program.size(), 0), 0);
  std::fclose(file);
  const auto numbers = WalkSeccompProgram(program).numbers;
  EXPECT_EQ(numbers.size(), 511U);
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), SYS_openat), 0);
  EXPECT_EQ(std::count(numbers.begin(), numbers.end(), SYS_socket), 1);
}

TEST(SeccompWalk, AFilterThatForgetsTheArchitectureAllowsOtherTables) {
  const std::vector<sock_filter> program = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const AllowedCalls allowed = WalkSeccompProgram(Bytes(program));
  EXPECT_EQ(allowed.numbers, std::vector<int>{SYS_read});
  EXPECT_TRUE(allowed.other_tables);
}

TEST(SeccompWalk, WhatCannotBeFollowedCountsAsAllowed) {
  // Returns what an argument says; computes the answer; jumps out of the program; has no end; is empty.
  const std::vector<std::vector<sock_filter>> programs = {
      {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16), BPF_STMT(BPF_RET | BPF_A, 0)},
      {BPF_STMT(BPF_LD | BPF_W | BPF_IMM, 1), BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 3), BPF_STMT(BPF_RET | BPF_A, 0)},
      {BPF_STMT(BPF_JMP | BPF_JA, 0xFFFFFFFF), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)},
      {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)},
      {},
  };
  for (const auto& program : programs) EXPECT_EQ(WalkSeccompProgram(Bytes(program)).numbers.size(), 512U);
}

}  // namespace
}  // namespace bulkhead::launcher
