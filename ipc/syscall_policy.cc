// SPDX-License-Identifier: Apache-2.0
#include "ipc/syscall_policy.h"

#include <fmt/core.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace bulkhead {
namespace {

using Filter = std::unique_ptr<void, void (*)(scmp_filter_ctx)>;

void Check(int result, const char* what) {
  if (result >= 0) return;
  errno = -result;
  ThrowErrno(what);
}

Filter MakeFilter(const std::vector<SyscallPolicy::Rule>& rules, OnViolation on_violation) {
  Filter filter(::seccomp_init(on_violation == OnViolation::kReport ? SCMP_ACT_NOTIFY : SCMP_ACT_KILL_PROCESS),
                ::seccomp_release);
  if (!filter) throw FatalError("create the system call filter: out of memory");
  // Calls by the numbers of another architecture (int 0x80, x32) are never an accident.
  Check(::seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "filter other architectures");
  Check(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1), "filter all threads");
  Check(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "order the filter as a tree");
  for (const SyscallPolicy::Rule& rule : rules) {
    std::vector<scmp_arg_cmp> tests;
    for (const SyscallArgument& argument : rule.arguments) {
      if (argument.test == SyscallArgument::Test::kEquals) {
        tests.push_back({argument.index, SCMP_CMP_EQ, argument.value, 0});
      } else {
        tests.push_back({argument.index, SCMP_CMP_MASKED_EQ, argument.mask, argument.value});
      }
    }
    Check(::seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, rule.number, static_cast<unsigned>(tests.size()),
                                   tests.data()),
          "add a rule to the system call filter");
  }
  return filter;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BULKHEAD_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BULKHEAD_SANITIZED 1
#endif
#endif
#ifdef BULKHEAD_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// A sanitizer's run-time library allocates as it goes and needs more to report what it found. Only in such builds.
std::vector<SyscallPolicy::Rule> WithSanitizer(std::vector<SyscallPolicy::Rule> rules) {
  for (const int number : {SYS_mmap,      SYS_munmap,      SYS_mprotect,          SYS_madvise,
                           SYS_brk,       SYS_mremap,      SYS_sigaltstack,       SYS_getpid,
                           SYS_gettid,    SYS_sched_yield, SYS_rt_sigprocmask,    SYS_rt_sigaction,
                           SYS_exit,      SYS_prctl,       SYS_readlink,          SYS_openat,
                           SYS_getrlimit, SYS_prlimit64,   SYS_sched_getaffinity, SYS_tgkill,
                           SYS_clone}) {
    rules.push_back({.number = number, .reason = "sanitizer", .arguments = {}});
  }
  return rules;
}

std::string Describe(const SyscallArgument& argument) {
  if (argument.test == SyscallArgument::Test::kEquals)
    return fmt::format("argument {} == {:#x}", argument.index, argument.value);
  return fmt::format("argument {} & {:#x} == {:#x}", argument.index, argument.mask, argument.value);
}

std::string Describe(const SyscallPolicy::Rule& rule) {
  std::string line = SyscallName(rule.number) + "(";
  for (const SyscallArgument& argument : rule.arguments) {
    line += (&argument == &rule.arguments.front() ? "" : ", ") + Describe(argument);
  }
  return line + ")  # " + rule.reason;
}

}  // namespace

SyscallArgument Equals(unsigned index, uint64_t value) {
  return {.index = index, .test = SyscallArgument::Test::kEquals, .value = value};
}

SyscallArgument MaskedEquals(unsigned index, uint64_t mask, uint64_t value) {
  return {.index = index, .test = SyscallArgument::Test::kMaskedEquals, .value = value, .mask = mask};
}

void SyscallPolicy::Allow(int number, std::string reason, std::initializer_list<SyscallArgument> arguments) {
  rules_.push_back(Rule{number, std::move(reason), arguments});
}

void SyscallPolicy::AllowIoctl(unsigned long request, std::string reason) {
  Allow(SYS_ioctl, std::move(reason), {Equals(1, request)});
}

std::string SyscallPolicy::Listing() const {
  std::vector<std::string> lines;
  for (const Rule& rule : rules_) lines.push_back(Describe(rule));
  std::sort(lines.begin(), lines.end());
  std::string listing;
  for (const std::string& line : lines) listing += line + "\n";
  return listing;
}

std::string SyscallPolicy::Program(OnViolation on_violation) const {
  const Filter filter = MakeFilter(rules_, on_violation);
  std::FILE* file = std::tmpfile();
  if (file == nullptr) ThrowErrno("make a temporary file");
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> closer(file, std::fclose);
  Check(::seccomp_export_bpf(filter.get(), ::fileno(file)), "compile the system call filter");
  std::string program(static_cast<size_t>(std::ftell(file) >= 0 ? ::lseek(::fileno(file), 0, SEEK_END) : 0), '\0');
  if (::pread(::fileno(file), program.data(), program.size(), 0) != static_cast<ssize_t>(program.size())) {
    ThrowErrno("read the compiled system call filter");
  }
  return program;
}

OwnFd SyscallPolicy::Install(OnViolation on_violation) const {
  const Filter filter = MakeFilter(kSanitized ? WithSanitizer(rules_) : rules_, on_violation);
  Check(::seccomp_load(filter.get()), "install the system call filter");
  if (on_violation == OnViolation::kKill) return {};
  const int listener = ::seccomp_notify_fd(filter.get());
  Check(listener, "listen to the system call filter");
  // libseccomp forgets the descriptor with the filter, and does not close it.
  return OwnFd(listener);
}

int PrintPolicy(const std::string& option, const SyscallPolicy& policy) {
  std::string text;
  if (option == "--policy") {
    text = policy.Listing();
  } else if (option == "--policy=bpf") {
    text = policy.Program(OnViolation::kReport);
  } else if (option == "--policy=bpf-kill") {
    text = policy.Program(OnViolation::kKill);
  } else {
    throw FatalError("this program is started by Bulkhead's broker; by hand it only takes --policy");
  }
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0 : 1;
}

std::string SyscallName(int number) {
  const std::unique_ptr<char, void (*)(void*)> name(::seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, number),
                                                    std::free);
  return name ? name.get() : "system call " + std::to_string(number);
}

}  // namespace bulkhead
