// SPDX-License-Identifier: Apache-2.0
#include "tests/process/faults.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <vector>

#include "tests/process/harness.h"
#include "tests/process/process_cgroup.h"

namespace bulkhead::test {
namespace {

constexpr unsigned kMostMomentUs = 30'000;

// By process, of all lines "bulkhead:VM broker: PROCESS goes on after X ms".
std::map<std::string, std::vector<double>> DelaysMs(const std::string& said) {
  std::map<std::string, std::vector<double>> delays;
  std::istringstream lines(said);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(" broker: "), after = line.find(" goes on after ");
    if (colon == std::string::npos || after == std::string::npos) continue;
    std::istringstream words(line.substr(colon + 9));
    std::string process, word;
    double ms = 0;
    if (words >> process >> word >> word >> word >> ms) delays[process].push_back(ms);
  }
  return delays;
}

std::string Percentiles(std::vector<double> values) {
  std::ranges::sort(values);
  const auto at = [&](size_t percent) { return values[std::min(values.size() - 1, values.size() * percent / 100)]; };
  return fmt::format("{} times, p50 {:.1f} ms, p99 {:.1f} ms", values.size(), at(50), at(99));
}

}  // namespace

Faults::Faults(std::string vm, unsigned seed, Wait wait) : vm_(std::move(vm)), random_(seed), wait_(std::move(wait)) {}

Faults::Kind Faults::Choose(bool may_hold) {
  // Of sixteen. What may not be is a kill.
  static constexpr std::array<Kind, 8> kRare{kOutOfMemory, kOutOfMemory, kHeld,  kHeldTooLong,
                                             kStopped,     kStopped,     kLetGo, kLetGo};
  const size_t drawn = random_() % 16;
  const Kind kind = drawn < kRare.size() ? kRare[drawn] : kKilled;
  return may_hold || (kind != kOutOfMemory && kind != kHeld && kind != kHeldTooLong) ? kind : kKilled;
}

bool Faults::Do(const std::string& device, pid_t pid) {
  const auto cgroup = ProcessCgroup::Of(pid);
  const Kind kind = Choose(cgroup.has_value());
  const useconds_t moment_us = random_() % kMostMomentUs;
  switch (kind) {
    case kOutOfMemory:
      return Count(device, kind, cgroup->RunOutOfMemory() != 0);
    case kHeld:
      if (!Count(device, kind, cgroup->Hold())) return false;
      ::usleep(moment_us);
      cgroup->LetGo();
      return false;
    case kHeldTooLong:
      return Count(device, kind, HoldTooLong(device, pid));
    case kStopped:
      return Count(device, kind, ::kill(pid, SIGSTOP) == 0);
    case kLetGo:
      // Whether it is seen to be stopped is by chance, too.
      Count(device, kind, ::kill(pid, SIGSTOP) == 0);
      ::kill(pid, SIGCONT);
      return false;
    default:
      return Count(device, kKilled, ::kill(pid, SIGKILL) == 0);
  }
}

// Its successor is born in the same cgroup.
bool Faults::HoldTooLong(const std::string& device, pid_t pid) {
  const auto cgroup = ProcessCgroup::Of(pid);
  if (!cgroup || !cgroup->Hold()) return false;
  const bool replaced = wait_([&] { return ProcessOf(vm_, device) != pid; });
  cgroup->LetGo();
  return replaced;
}

bool Faults::KillBroker(pid_t pid) { return Count("broker", kKilled, pid > 0 && ::kill(pid, SIGKILL) == 0); }

bool Faults::Count(const std::string& process, Kind kind, bool done) {
  counts_[process][kind] += done ? 1 : 0;
  return done;
}

unsigned Faults::total() const {
  unsigned total = 0;
  for (const auto& [process, kinds] : counts_) total += std::accumulate(kinds.begin(), kinds.end(), 0u);
  return total;
}

std::string Faults::Table(const std::string& said) const {
  std::string table = fmt::format("{:20}", "faults");
  for (const auto& [process, kinds] : counts_) table += fmt::format("{:>9}", process);
  table += fmt::format("{:>9}\n", "all");
  for (size_t kind = 0; kind < kKinds; ++kind) {
    unsigned all = 0;
    table += fmt::format("{:20}", kNames[kind]);
    for (const auto& [process, kinds] : counts_) {
      table += fmt::format("{:9}", kinds[kind]);
      all += kinds[kind];
    }
    table += fmt::format("{:9}\n", all);
  }
  table += "from the death that the broker saw until the next process served:\n";
  std::vector<double> all;
  for (const auto& [process, delays] : DelaysMs(said)) {
    table += fmt::format("{:20}{}\n", process, Percentiles(delays));
    all.insert(all.end(), delays.begin(), delays.end());
  }
  if (!all.empty()) table += fmt::format("{:20}{}\n", "all", Percentiles(std::move(all)));
  return table;
}

}  // namespace bulkhead::test
