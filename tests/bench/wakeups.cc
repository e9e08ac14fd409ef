// SPDX-License-Identifier: Apache-2.0
// wakeups: what it costs to wake somebody and to be woken by them, with nothing else in between. The two have one
// processor, and then one each, where there are two.
//
//   wakeups processes N          by eventfds, as the processes of a VM wake each other
//   wakeups threads N            the same in one process
//   wakeups spin N               two threads that look at each other's memory all the time; on two processors
//
// Prints "bench one p50 NANOSECONDS p99 NANOSECONDS", "bench two ..." and "second 1000000000", as tests/payload's
// guests do in cycles.
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

uint64_t Nanoseconds() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// Those that this process may use.
std::vector<int> Processors() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) Fail("sched_getaffinity");
  std::vector<int> processors;
  for (int each = 0; each < CPU_SETSIZE; ++each) {
    if (CPU_ISSET(each, &allowed)) processors.push_back(each);
  }
  return processors;
}

void StayOn(int processor) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  if (::sched_setaffinity(0, sizeof only, &only) != 0) Fail("sched_setaffinity");
}

class Event {
 public:
  Event() {
    if (fd_ < 0) Fail("eventfd");
  }
  ~Event() { ::close(fd_); }
  void Signal() const {
    const uint64_t one = 1;
    if (::write(fd_, &one, sizeof one) != sizeof one) Fail("signal an eventfd");
  }
  void Await() const {
    uint64_t count;
    if (::read(fd_, &count, sizeof count) != sizeof count) Fail("wait for an eventfd");
  }

 private:
  const int fd_ = ::eventfd(0, EFD_CLOEXEC);
};

// There and back, `count` times.
void Measure(const char* name, unsigned count, const std::function<void()>& once) {
  std::vector<uint64_t> times;
  for (unsigned i = 0; i < count; ++i) {
    const uint64_t begun = Nanoseconds();
    once();
    times.push_back(Nanoseconds() - begun);
  }
  std::ranges::sort(times);
  std::printf("bench %s p50 %lu p99 %lu\n", name, times[count / 2], times[count * 99UL / 100]);
}

// The caller stays on `here`; the other, which answers as often, on `there`.
void ByEvents(const char* name, bool process, unsigned count, int here, int there) {
  const Event ask, answer;
  const auto other = [&] {
    StayOn(there);
    for (unsigned i = 0; i < count; ++i) ask.Await(), answer.Signal();
  };
  std::thread thread;
  pid_t child = -1;
  std::fflush(stdout);
  if (!process) {
    thread = std::thread(other);
  } else if (child = ::fork(); child == 0) {
    other();
    ::_exit(0);
  } else if (child < 0) {
    Fail("fork");
  }
  StayOn(here);
  Measure(name, count, [&] { ask.Signal(), answer.Await(); });
  if (thread.joinable()) thread.join();
  if (child > 0) ::waitpid(child, nullptr, 0);
}

void BySpinning(const char* name, unsigned count, int here, int there) {
  std::atomic<unsigned> asked = 0, answered = 0;
  std::thread other([&] {
    StayOn(there);
    for (unsigned i = 1; i <= count; ++i) {
      while (asked.load() != i) continue;
      answered.store(i);
    }
  });
  StayOn(here);
  unsigned number = 0;
  Measure(name, count, [&] {
    asked.store(++number);
    while (answered.load() != number) continue;
  });
  other.join();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const auto count = static_cast<unsigned>(argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0);
  if (count == 0 || (mode != "processes" && mode != "threads" && mode != "spin")) {
    std::fprintf(stderr, "usage: wakeups processes|threads|spin COUNT\n");
    return 2;
  }
  const std::vector<int> processors = Processors();
  const int first = processors[0];
  if (mode != "spin") ByEvents("one", mode == "processes", count, first, first);
  if (processors.size() > 1 && mode != "spin") ByEvents("two", mode == "processes", count, first, processors[1]);
  if (processors.size() > 1 && mode == "spin") BySpinning("two", count, first, processors[1]);
  std::printf("second 1000000000\n");
  return 0;
}
