// SPDX-License-Identifier: Apache-2.0
// faults VM SEED N LOG FILE...: N faults of the processes of a running VM, of each kind of process as many, in an order
// that SEED decides. After most of them it waits until every FILE grows, which the guest's load has to see to. Says
// each on stderr and ends with a table, for which LOG has what the VM's processes said; exit status 1 if the VM does
// not go on.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "tests/process/faults.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr char kBroker[] = "broker";

bool Runs(const std::string& vm) { return ProcessOf(vm, "vcpu-runner") > 0; }

// Of each kind of process those there are: "disk" has "disk0", "disk1".
using ByKind = std::vector<std::vector<std::string>>;

ByKind FindProcesses(const std::string& vm) {
  std::map<std::string, std::vector<std::string>> kinds;
  for (const pid_t pid : ProcessesOf(vm)) {
    std::string name = ReadFile("/proc/" + std::to_string(pid) + "/cmdline").c_str();
    name.erase(0, name.rfind(' ') + 1);
    if (name == "vcpu-runner" || name == "spawner") continue;
    kinds[name.substr(0, name.find_last_not_of("0123456789") + 1)].push_back(name);
  }
  ByKind found;
  for (auto& [kind, names] : kinds) {
    std::ranges::sort(names);
    found.push_back(names);
  }
  return found;
}

class Chaos {
 public:
  Chaos(std::string vm, unsigned seed, std::vector<std::string> files)
      : vm_(std::move(vm)),
        files_(std::move(files)),
        faults_(vm_, seed, [this](const auto& holds) { return Wait(holds); }) {}

  // False if the VM does not go on.
  bool Run(unsigned count) {
    ByKind processes = FindProcesses(vm_);
    for (size_t round = 0; faults_.total() < count; ++round) {
      for (size_t i = processes.size(); i > 1; --i) std::swap(processes[i - 1], processes[faults_.Random() % i]);
      for (const auto& kind : processes) {
        if (faults_.total() == count) break;
        if (!Strike(kind[round % kind.size()])) return false;
      }
    }
    return GoesOn();
  }
  const Faults& faults() const { return faults_; }

 private:
  bool Wait(const std::function<bool()>& holds) const {
    return Eventually([&] { return holds() || !Runs(vm_); }) && Runs(vm_);
  }
  bool GoesOn() const {
    for (const std::string& file : files_) {
      const auto before = std::filesystem::file_size(file);
      if (!Wait([&] { return std::filesystem::file_size(file) > before; })) {
        std::printf("nothing more comes to %s\n", file.c_str());
        return false;
      }
    }
    return true;
  }
  bool Strike(const std::string& process) {
    pid_t before = -1;
    // The fault before may have been the same one's.
    if (!Wait([&] { return (before = ProcessOf(vm_, process)) > 0; })) return Lost(process);
    std::fprintf(stderr, "fault %u: %s, process %d\n", faults_.total() + 1, process.c_str(), before);
    const bool another = process == kBroker ? faults_.KillBroker(before) : faults_.Do(process, before);
    // Now and then the next one follows at once.
    if (faults_.Random() % 4 == 0) return true;
    const auto replaced = [&] {
      const pid_t now = ProcessOf(vm_, process);
      return now > 0 && now != before;
    };
    if (another && !Wait(replaced)) return Lost(process);
    if (!GoesOn()) return Lost(process);
    ::usleep(faults_.Random() % 30'000);
    return true;
  }
  bool Lost(const std::string& process) const {
    std::printf("fault %u, of %s: %s\n", faults_.total(), process.c_str(),
                Runs(vm_) ? "the VM does not go on" : "the VM has ended");
    return false;
  }

  const std::string vm_;
  const std::vector<std::string> files_;
  Faults faults_;
};

}  // namespace
}  // namespace bulkhead::test

int main(int argc, char** argv) {
  using namespace bulkhead::test;
  if (argc < 5) {
    std::fprintf(stderr, "usage: faults VM SEED N LOG FILE...\n");
    return 2;
  }
  Chaos chaos(argv[1], static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)), {argv + 5, argv + argc});
  const bool goes_on = chaos.Run(static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10)));
  std::printf("%s", chaos.faults().Table(ReadFile(argv[4])).c_str());
  return goes_on ? 0 : 1;
}
