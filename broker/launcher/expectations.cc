// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/expectations.h"

#include <fmt/format.h>

#include <linux/capability.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

namespace bulkhead::launcher {
namespace {

constexpr unsigned kAnyNumber = ~0U;
// What the broker says of them is believed no further.
constexpr unsigned kMaxQueues = 17;
constexpr unsigned kMaxDiskFiles = 16;
constexpr unsigned kMaxTapQueues = 8;
constexpr uint64_t kMemoryOfVcpu = uint64_t{4} << 20;
constexpr uint64_t kMapUsers = uint64_t{1} << CAP_SETUID | uint64_t{1} << CAP_SETGID;

// Standard input and output, the log, the connection to the broker, the socket that brings the next one's, and the
// control plane's event loop.
const std::vector<FdBound> kEveryChild = {
    {FdKind::kNull, 2}, {FdKind::kPipe, 1}, {FdKind::kSocket, 2}, {FdKind::kEpoll, 1}, {FdKind::kSignalfd, 1},
};
// The device thread's event loop, the exit ring, the line for signs of life. Each grant may still be held by the
// message it came with.
const std::vector<FdBound> kEveryDevice = {
    {FdKind::kEpoll, 1}, {FdKind::kExitRing, 1}, {FdKind::kJournal, 1}, {FdKind::kSocket, 2}};
// Guest memory, and the log of what is written there.
const std::vector<FdBound> kMemoryUser = {{FdKind::kGuestMemory, 1}, {FdKind::kDirtyLog, 1}};
// The outside of a console: a file, a terminal, a connection or a pipe, for input and for output.
const std::vector<FdBound> kStreams = {
    {FdKind::kFile, 4}, {FdKind::kTerminal, 4}, {FdKind::kSocket, 8}, {FdKind::kPipe, 8}};

std::vector<FdBound> Join(std::initializer_list<std::vector<FdBound>> parts) {
  std::vector<FdBound> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

const std::vector<Expectation>& Table() {
  static const std::vector<Expectation> table = {
      {.kind = "broker",
       .executable = "bulkhead-broker",
       .caged = false,
       .guest_memory = GuestMemoryUse::kNever,
       .all_exit_rings = true,
       .files = kAnyNumber,  // the launcher's standard output, images, consoles: it holds what it hands out
       .bounds = {{FdKind::kNull, 3},
                  {FdKind::kSocket, kAnyNumber},  // whoever is connected to the VM's sockets
                  {FdKind::kPipe, kAnyNumber},
                  {FdKind::kFile, kAnyNumber},
                  {FdKind::kBlockDevice, kAnyNumber},
                  {FdKind::kTerminal, kAnyNumber},
                  {FdKind::kTap, kAnyNumber},
                  {FdKind::kVhostNet, kAnyNumber},  // by the messages that bring them and take them on
                  {FdKind::kDirectory, 4},          // of the VM's control socket, of the helpers, and cgroups
                  {FdKind::kEventfd, kAnyNumber},
                  {FdKind::kEpoll, 1},
                  {FdKind::kSignalfd, 1},
                  {FdKind::kTimerfd, 1},
                  {FdKind::kKvm, 1},
                  {FdKind::kPidfd, 1, 1},
                  {FdKind::kSeccompListener, 1, 1},
                  {FdKind::kGuestMemory, 2, 1},
                  {FdKind::kPacketRing, 0, 3},
                  {FdKind::kJournal, 1, 2},
                  {FdKind::kOutputStage, 6},
                  {FdKind::kDirtyLog, 2, 2},
                  {FdKind::kExitRing, 0, 2}}},
      {.kind = "spawner",
       .executable = "bulkhead-spawner",
       .caged = false,
       .filtered = false,  // what it starts would inherit that
       .capabilities = kMapUsers,
       .all_exit_rings = true,
       .files = kAnyNumber,  // the launcher's standard output, the programs, and that of user ids
       // And of each process its own end of what leads there, and what is kept for another broker.
       .bounds = {{FdKind::kNull, 3},
                  {FdKind::kSocket, 6, 5},  // the launcher's standard output may be one, and consoles' connections are
                  {FdKind::kPipe, 4, 1},
                  {FdKind::kTerminal, 3},
                  {FdKind::kFile, 6, 2},
                  {FdKind::kDirectory, 4, 1},  // cgroups
                  {FdKind::kEventfd, kAnyNumber},
                  {FdKind::kPidfd, 1, 1},
                  {FdKind::kSeccompListener, 1, 1},
                  {FdKind::kGuestMemory, 1},
                  {FdKind::kPacketRing, 0, 1},
                  {FdKind::kJournal, 1, 1},
                  {FdKind::kOutputStage, 3},
                  {FdKind::kDirtyLog, 1, 1},
                  {FdKind::kExitRing, 0, 1}}},
      {.kind = "vcpu-runner",
       .executable = "bulkhead-vcpu-runner",
       .guest_memory = GuestMemoryUse::kAlways,
       .tasks = {.fixed = 8, .per_vcpu = 1},
       .all_exit_rings = true,
       .files = 0,
       .bounds = Join({kEveryChild,
                       {{FdKind::kEventfd, 17, 2, 0, 2},  // doorbells, lines, kicks, interrupts
                        {FdKind::kKvmVm, 1},
                        {FdKind::kKvmVcpu, 0, 0, 1},
                        {FdKind::kExitRing, 0, 1}},
                       kMemoryUser})},
      {.kind = "chipset",
       .executable = "bulkhead-chipset",
       .files = 1,  // the debug console's output
       .bounds = Join({kEveryChild,
                       kEveryDevice,
                       kStreams,
                       {{FdKind::kEventfd, 14}, {FdKind::kTimerfd, 4}, {FdKind::kOutputStage, 2}}})},
      {.kind = "console",
       .executable = "bulkhead-console",
       .guest_memory = GuestMemoryUse::kOptional,  // the virtio console's queues; the serial port has none
       .files = 2,
       .bounds = Join(
           {kEveryChild, kEveryDevice, kStreams, kMemoryUser, {{FdKind::kEventfd, 24}, {FdKind::kOutputStage, 4}}})},
      {.kind = "disk",
       .executable = "bulkhead-disk",
       .guest_memory = GuestMemoryUse::kAlways,
       .tasks = {.fixed = 6, .per_queue = 33},
       .files = kMaxDiskFiles,
       .counts_files = true,
       .own_memory = uint64_t{192} << 20,  // of an image with a format
       .bounds = Join({kEveryChild,
                       kEveryDevice,
                       {{FdKind::kFile, 0, 0, 0, 0, 2},
                        {FdKind::kBlockDevice, 0, 0, 0, 0, 2},
                        {FdKind::kEventfd, 8, 0, 0, 6},
                        {FdKind::kIoUring, 0, 0, 0, 1}},
                       kMemoryUser})},
      {.kind = "net",
       .executable = "bulkhead-net",
       .guest_memory = GuestMemoryUse::kAlways,
       .tasks = {.fixed = 6, .per_queue = 1},
       .files = kMaxTapQueues,
       .counts_files = true,
       // Of a pair's thread: its event loop, what stops that, its mailbox, its alarm.
       .bounds = Join({kEveryChild,
                       kEveryDevice,
                       {{FdKind::kTap, 0, 0, 0, 0, 2},
                        {FdKind::kVhostNet, 0, 0, 0, 0, 2},
                        {FdKind::kTimerfd, 1},     // with vhost
                        {FdKind::kPacketRing, 1},  // instead of a tap
                        {FdKind::kEventfd, 16, 0, 0, 6},
                        {FdKind::kEpoll, 0, 0, 0, 1},
                        {FdKind::kTimerfd, 0, 0, 0, 1}},
                       kMemoryUser})},
      {.kind = "usernet",
       .executable = "bulkhead-usernet",
       .keeps_network = true,
       .own_memory = uint64_t{320} << 20,
       // An epoll instance of the loop's and one of its sockets'; these are as many as its limit on descriptors lets
       // it.
       .bounds = Join({kEveryChild,
                       {{FdKind::kEpoll, 2},
                        {FdKind::kPacketRing, 1},
                        {FdKind::kEventfd, 10},
                        {FdKind::kJournal, 1},
                        {FdKind::kSocket, kAnyNumber}}})},
      {.kind = "rng",
       .executable = "bulkhead-rng",
       .guest_memory = GuestMemoryUse::kAlways,
       .bounds = Join({kEveryChild, kEveryDevice, kMemoryUser, {{FdKind::kEventfd, 14}}})},
  };
  return table;
}

// A disk has at most one thread and one io_uring for each queue, a network interface a thread for each pair; the
// others' queues cost nothing of their own.
unsigned QueuesOf(const ProcessFacts& process) {
  const Expectation* expected = FindExpectation(process.name);
  const bool counts = expected != nullptr && (expected->kind == "disk" || expected->kind == "net");
  return counts ? std::min(process.granted.queues, kMaxQueues) : 0;
}

// Compares one process; every difference gets its name in front.
class Comparison {
 public:
  Comparison(const VmFacts& vm, const ProcessFacts& process, const Expectation& expected, Findings& findings)
      : vm_(vm), process_(process), expected_(expected), findings_(findings) {}

  void Run(const std::string& executables) {
    if (!process_.exists) return Differs("is not running");
    CompareFamily();
    CompareExecutable(executables);
    CompareThreads();
    CompareUser();
    if (expected_.caged) {
      CompareNamespaces();
      CompareRoot();
      CompareCgroup();
    }
    CompareLimits();
    CompareDescriptors();
    CompareMemory();
  }

 private:
  void Differs(const std::string& what) { findings_.differences.push_back(process_.name + ": " + what); }

  void Unseen(const char* what) {
    if (std::find(findings_.unseen.begin(), findings_.unseen.end(), what) == findings_.unseen.end()) {
      findings_.unseen.emplace_back(what);
    }
  }

  // The broker says which processes there are; all but itself and the spawner must be the spawner's children, and none
  // may be left out. A spawner is another's child when its broker has ended.
  void CompareFamily() {
    const auto spawner = std::find_if(vm_.processes.begin(), vm_.processes.end(),
                                      [](const ProcessFacts& process) { return process.name == "spawner"; });
    if (expected_.caged && (spawner == vm_.processes.end() || process_.parent != spawner->pid)) {
      Differs("is not a child of the spawner");
    }
    if (expected_.caged) return;
    for (const pid_t child : process_.children) {
      const auto listed = std::any_of(vm_.processes.begin(), vm_.processes.end(),
                                      [&](const ProcessFacts& other) { return other.pid == child; });
      if (!listed) Differs(fmt::format("has a child that it does not tell of, process {}", child));
    }
  }

  void CompareExecutable(const std::string& executables) {
    if (!process_.executable) return Unseen("executables");
    const std::string expected = executables + "/" + expected_.executable;
    if (*process_.executable != expected) Differs("runs " + *process_.executable + ", not " + expected);
  }

  void CompareThreads() {
    for (const ThreadFacts& thread : process_.threads) {
      const std::string name = fmt::format("thread {} ({})", thread.tid, thread.name);
      uint64_t capabilities = thread.permitted | thread.effective | thread.inheritable | thread.ambient;
      // It takes a capability to empty the bounding set, and an ordinary user's broker never had one.
      if (expected_.caged || process_.uids[0] == 0) capabilities |= thread.bounding;
      if (process_.uids[0] == 0) capabilities &= ~expected_.capabilities;
      if (capabilities != 0) Differs(fmt::format("{} has capabilities {:#x}", name, capabilities));
      if (!thread.no_new_privs) Differs(name + " may gain privileges (no_new_privs is not set)");
      if (!expected_.filtered) continue;
      if (thread.seccomp_mode != 2) Differs(name + " has no system call filter");
      if (thread.seccomp_mode == 2 && thread.seccomp_filters != 1) {
        Differs(fmt::format("{} has {} system call filters, not one", name, thread.seccomp_filters));
      }
    }
  }

  void CompareUser() {
    const uid_t uid = process_.uids[0];
    const gid_t gid = process_.gids[0];
    const auto same = [](const auto& ids) {
      return std::all_of(ids.begin(), ids.end(), [&](auto id) { return id == ids[0]; });
    };
    if (!same(process_.uids) || !same(process_.gids)) Differs("its real, effective and saved ids are not the same");
    if (!expected_.caged) return;
    const ProcessFacts& broker = vm_.processes.front();
    if (broker.uids[0] != 0) {
      // An ordinary user has no other ids to give.
      if (uid != broker.uids[0]) Differs(fmt::format("runs as user {}, its broker as {}", uid, broker.uids[0]));
      return;
    }
    if (uid == 0 || gid == 0) Differs(fmt::format("runs as user {} and group {} of the host", uid, gid));
    if (!process_.groups.empty()) Differs("is in groups of the host");
    for (const ProcessFacts& other : vm_.processes) {
      if (other.pid < process_.pid && uid != 0 && other.uids[0] == uid) {
        Differs(fmt::format("runs as user {} like {}", uid, other.name));
      }
    }
  }

  void CompareNamespaces() {
    if (!process_.namespaces) return Unseen("namespaces");
    for (const NamespaceFact& fact : *process_.namespaces) {
      if (expected_.keeps_network && fact.kind == "net") {
        CompareKeptNetwork(fact);
        continue;
      }
      if (!fact.own) Differs("shares the " + fact.kind + " namespace of this command");
      for (const ProcessFacts& other : vm_.processes) {
        // Each pair once, and one that keeps its network after all that do not.
        const Expectation* kind = FindExpectation(other.name);
        const bool kept = kind != nullptr && kind->keeps_network && fact.kind == "net";
        if ((other.pid >= process_.pid && !kept) || !other.namespaces) continue;
        const auto same = std::any_of(other.namespaces->begin(), other.namespaces->end(),
                                      [&](const NamespaceFact& theirs) { return theirs.id == fact.id; });
        if (same) Differs("shares the " + fact.kind + " namespace of " + other.name);
      }
    }
  }

  // The network of whoever started the VM, not a third one.
  void CompareKeptNetwork(const NamespaceFact& fact) {
    const ProcessFacts& broker = vm_.processes.front();
    if (!broker.namespaces) return Unseen("namespaces");
    const auto same = std::any_of(broker.namespaces->begin(), broker.namespaces->end(),
                                  [&](const NamespaceFact& theirs) { return theirs.id == fact.id; });
    if (!same) Differs("is in another network namespace than the broker");
  }

  void CompareRoot() {
    if (!process_.root.only_mount) Differs("sees other mounts than its root");
    if (!process_.root.read_only) Differs("may write to its root directory");
    if (!process_.root.empty) return Unseen("root directories");
    if (!*process_.root.empty) Differs("its root directory is not empty");
  }

  // Where the host has cgroups for one of them, each is in its own, and that has limits. How far they reach is in the
  // settings, which the broker alone knows; `bulkhead run` said so where there are none.
  void CompareCgroup() {
    const auto leaf = [this](const ProcessFacts& process) {
      return fmt::format("/{}-{}/{}", vm_.name, vm_.processes.front().pid, process.name);
    };
    const auto in_leaf = [&](const ProcessFacts& process) { return process.cgroup.path.ends_with(leaf(process)); };
    if (std::none_of(vm_.processes.begin(), vm_.processes.end(), in_leaf)) return;
    if (process_.cgroup.path.empty()) return Unseen("cgroups");
    if (!in_leaf(process_)) return Differs(fmt::format("is in cgroup {}, not in its own", process_.cgroup.path));
    CompareCgroupLimit("memory.max", MemoryBound());
    const TaskBound& tasks = expected_.tasks;
    CompareCgroupLimit("pids.max", tasks.fixed + uint64_t{tasks.per_vcpu} * vm_.vcpus +
                                       uint64_t{tasks.per_queue} * QueuesOf(process_));
  }

  // What it needs itself, and where it maps guest memory all of that (whoever touches a page first is charged for it)
  // with the page tables, KVM's own in the vcpu-runner.
  uint64_t MemoryBound() const {
    const bool maps_guest = expected_.guest_memory != GuestMemoryUse::kNever;
    return expected_.own_memory + (maps_guest ? vm_.memory_bytes + vm_.memory_bytes / 16 : 0) +
           expected_.tasks.per_vcpu * vm_.vcpus * kMemoryOfVcpu;
  }

  void CompareCgroupLimit(const char* file, uint64_t bound) {
    const auto limit = process_.cgroup.limits.find(file);
    if (limit == process_.cgroup.limits.end() || limit->second == "max") {
      return Differs(fmt::format("has no limit in {} of its cgroup", file));
    }
    uint64_t value = 0;
    const std::string& text = limit->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value > bound) {
      Differs(fmt::format("has {} in {} of its cgroup, not at most {}", text, file, bound));
    }
  }

  void CompareLimits() {
    const auto core = process_.hard_limits.find("Max core file size");
    if (core == process_.hard_limits.end()) return Unseen("resource limits");
    if (core->second != "0") Differs("may write core dumps (limit " + core->second + ")");
  }

  // All but the broker, its spawner and the vcpu-runner.
  uint64_t Devices() const { return std::max<size_t>(vm_.processes.size(), 3) - 3; }

  unsigned Files() const {
    return expected_.counts_files ? std::min(process_.granted.files, expected_.files) : expected_.files;
  }

  unsigned Bound(FdKind kind, unsigned queues) const {
    uint64_t bound = 0;
    for (const FdBound& part : expected_.bounds) {
      if (part.kind != kind) continue;
      if (part.fixed == kAnyNumber) return kAnyNumber;
      bound += part.fixed + uint64_t{part.per_vcpu} * vm_.vcpus + part.per_device * Devices() +
               uint64_t{part.per_queue} * queues + uint64_t{part.per_file} * Files();
    }
    return static_cast<unsigned>(std::min<uint64_t>(bound, kAnyNumber - 1));
  }

  void CompareDescriptors() {
    if (!process_.descriptors) return Unseen("open descriptors");
    unsigned queues = QueuesOf(process_);
    if (expected_.kind == "vcpu-runner") {
      for (const ProcessFacts& process : vm_.processes) queues += QueuesOf(process);
    }
    std::map<FdKind, unsigned> counts;
    std::set<std::string> files;
    for (const Descriptor& fd : *process_.descriptors) {
      ++counts[fd.kind];
      if (fd.kind == FdKind::kFile || fd.kind == FdKind::kBlockDevice) files.insert(fd.target);
      if (fd.kind == FdKind::kGuestMemory) CompareGuestMemoryName(fd.target);
      if (fd.kind == FdKind::kExitRing) CompareExitRingName(fd.target);
      if (fd.kind == FdKind::kJournal) CompareJournalName(fd.target);
      if (fd.kind == FdKind::kDirtyLog) CompareDirtyLogName(fd.target);
    }
    for (const auto& [kind, count] : counts) {
      const unsigned bound = Bound(kind, queues);
      if (count > bound) Differs(fmt::format("has {} open, not at most {}", DescribeCount(kind, count), bound));
    }
    if (files.size() > Files()) {
      Differs(fmt::format("has {} different files open, not at most {}: {}", files.size(), Files(),
                          fmt::join(files, ", ")));
    }
  }

  // "3 of kind eventfd", and of what is never expected where it leads.
  std::string DescribeCount(FdKind kind, unsigned count) const {
    std::string text = fmt::format("{} of kind {}", count, FdKindName(kind));
    if (count > 3) return text;
    for (const Descriptor& fd : *process_.descriptors) {
      if (fd.kind == kind) text += fmt::format(" ({}: {})", fd.number, fd.target);
    }
    return text;
  }

  void CompareGuestMemoryName(const std::string& name) {
    if (name != "memfd:guest-" + vm_.name) Differs("has memory of another guest: " + name);
  }
  void CompareExitRingName(const std::string& name) {
    if (!expected_.all_exit_rings && name != "memfd:exits-" + process_.name) {
      Differs("has the exit ring of another device: " + name);
    }
  }

  void CompareJournalName(const std::string& name) {
    if (expected_.caged && name != "memfd:journal-" + process_.name) Differs("has another device's journal: " + name);
  }
  void CompareDirtyLogName(const std::string& name) {
    if (expected_.caged && name != "memfd:dirty-" + process_.name) Differs("has another process's dirty log: " + name);
  }

  void CompareMemory() {
    if (!process_.memory) return Unseen("memory maps");
    const MemoryFacts& memory = *process_.memory;
    for (const Mapping& mapping : memory.writable_executable) {
      Differs("has memory that can be written and executed: " + (mapping.name.empty() ? "anonymous" : mapping.name));
    }
    for (const Mapping& mapping : memory.exit_rings) CompareExitRingName(mapping.name);
    for (const Mapping& mapping : memory.guest_memory) {
      CompareGuestMemoryName(mapping.name);
      if (mapping.rights != "rw-s") Differs("has guest memory mapped as " + mapping.rights);
    }
    const uint64_t bytes = GuestMemoryBytes(memory);
    if (bytes != 0 && expected_.guest_memory == GuestMemoryUse::kNever) Differs("has guest memory mapped");
    if (bytes == 0 && expected_.guest_memory == GuestMemoryUse::kAlways) Differs("has no guest memory mapped");
    if (bytes > vm_.memory_bytes) Differs(fmt::format("has {} bytes of guest memory mapped", bytes));
  }

  const VmFacts& vm_;
  const ProcessFacts& process_;
  const Expectation& expected_;
  Findings& findings_;
};

}  // namespace

const Expectation* FindExpectation(std::string_view process) {
  const size_t digits = process.find_last_not_of("0123456789");
  const std::string_view kind = process.substr(0, digits == std::string_view::npos ? 0 : digits + 1);
  for (const Expectation& expected : Table()) {
    if (expected.kind == kind) return &expected;
  }
  return nullptr;
}

Findings CompareWithExpectations(const VmFacts& vm, const std::string& executables) {
  Findings findings;
  for (const ProcessFacts& process : vm.processes) {
    if (const Expectation* expected = FindExpectation(process.name)) {
      Comparison(vm, process, *expected, findings).Run(executables);
    } else {
      findings.differences.push_back(process.name + ": is no kind of process that a VM has");
    }
  }
  return findings;
}

}  // namespace bulkhead::launcher
