// SPDX-License-Identifier: Apache-2.0
#include "ipc/child.h"

#include <execinfo.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <exception>
#include <mutex>

#include "ipc/ring.h"
#include "ipc/rpc.h"
#include "ipc/start_up_memory.h"

namespace bulkhead {
namespace {

constexpr size_t kShortNameBytes = 15;  // TASK_COMM_LEN without its terminator

// "bulkhead:web1 disk0" if it fits, else as much of the VM's name as leaves room for the device's.
std::string ShortName(const std::string& title) {
  if (title.size() <= kShortNameBytes) return title;
  const size_t colon = title.find(':');
  const size_t space = title.rfind(' ');
  if (colon == std::string::npos || space == std::string::npos) return title.substr(0, kShortNameBytes);
  const std::string device = title.substr(space);
  const std::string vm = title.substr(colon + 1, space - colon - 1);
  const size_t room = device.size() < kShortNameBytes ? kShortNameBytes - device.size() : 0;
  return (vm.substr(0, room) + device).substr(0, kShortNameBytes);
}

// Of the threads that are made from now on: enough for all that any does, and too little for a huge page in it.
void LimitStacks() {
  constexpr size_t kStackBytes = size_t{1} << 20;
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  ::pthread_setattr_default_np(&attributes);
  ::pthread_attr_destroy(&attributes);
}

// Calls `body`, and returns what one line says of the exception that it throws; empty: none.
template <typename Body>
std::string WhatItThrows(const Body& body) {
  std::string failure;
  try {
    body();
    return {};
  } catch (const std::exception& error) {
    failure = error.what();
  } catch (const kj::Exception& error) {
    failure = ReasonOf(error);
  }
  // KJ appends where it happened on further lines.
  return failure.substr(0, failure.find('\n'));
}

// In the place of abort, for which a locked-down process has not the calls.
[[noreturn]] void EndByException() {
  const std::exception_ptr exception = std::current_exception();
  LogLine("nobody catches: " +
          (exception ? WhatItThrows([&] { std::rethrow_exception(exception); }) : "what is thrown"));
  ::_exit(1);
}

struct LogBudget {
  std::mutex mutex;
  int64_t second = 0;
  int lines = 0;
  uint64_t dropped = 0;
};

}  // namespace

ChildSandbox::ChildSandbox(LandlockScope scope) {
  EnterEmptyRoot();
  DropCapabilities();
  has_landlock_ = DenyPaths({}, scope);
}

void ChildSandbox::Close(control::SandboxGrant::Reader grant, std::initializer_list<ResourceLimit> limits,
                         const SyscallPolicy& policy, size_t heap_bytes) {
  ReserveHeap(heap_bytes);
  // The guest's memory is worth them. Not before: making the heap touches its end, where one could come to lie.
  AllowHugePages();
  LimitProcess(limits);
  listener_ = policy.Install(grant.getReportViolations() ? OnViolation::kReport : OnViolation::kKill);
}

void ChildSandbox::Report(control::SandboxReport::Builder report) const {
  report.setViolations(listener_.valid() ? listener_.get() : -1);
  report.setHasLandlock(has_landlock_);
}

int RunChild(int argc, char** argv, const SyscallPolicy& policy, const ChildBody& body, LandlockScope scope) {
  int status = 0;
  std::set_terminate(EndByException);
  const std::string failure = WhatItThrows([&] {
    // One heap for all threads, from the start: a second arena would cost memory.
    ::mallopt(M_ARENA_MAX, 1);
    LimitStacks();
    ::signal(SIGPIPE, SIG_IGN);
    if (argc > 1) {
      status = PrintPolicy(argv[1], policy);
      return;
    }
    // KJ's exceptions know where they come from, by a library that a program which is not static loads the first time.
    void* frame;
    ::backtrace(&frame, 1);
    ChildSandbox sandbox(scope);
    NameProcess(argc > 0 ? argv[0] : "bulkhead");
    auto io = kj::setupAsyncIo();
    body(io, sandbox);
  });
  if (failure.empty()) return status;
  LogLine(failure);
  return 1;
}

void NameProcess(const std::string& title) { SetProcessName(ShortName(title)); }

GuestMemory MapGrantedMemory(control::MemoryGrant::Reader grant, kj::WaitScope& wait) {
  std::vector<MemoryRegion> regions;
  for (auto region : grant.getRegions()) {
    regions.push_back({Gpa{region.getBase()}, region.getSize(), region.getFileOffset()});
  }
  const OwnFd file = TakeFile(grant.getFile(), wait);
  GuestMemory memory = OrThrow(GuestMemory::Map(file.get(), regions));
  if (!grant.hasLog()) return memory;
  memory.LogWrites(OrThrow(DirtyLog::Map(TakeFile(grant.getLog(), wait).get(), memory.end())));
  // A host without membarrier cannot switch logging on.
  (void)DirtyLog::TakePart();
  return memory;
}

void LogLine(const std::string& line) {
  static LogBudget budget;
  std::string text = line;
  {
    std::lock_guard lock(budget.mutex);
    const int64_t second = MonotonicNow() / 1'000'000'000;
    if (second != budget.second) {
      budget.second = second;
      budget.lines = 0;
    }
    if (++budget.lines > kLogLinesPerSecond) {
      ++budget.dropped;
      return;
    }
    if (budget.dropped != 0)
      text += " (" + std::to_string(std::exchange(budget.dropped, 0)) + " lines left out before)";
  }
  text += '\n';
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace bulkhead
