// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/expectations.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "broker/launcher/expectations_filter.h"

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kMemory = uint64_t{64} << 20;

ProcessFacts Child(const std::string& name, const std::string& kind, pid_t pid) {
  ProcessFacts facts;
  facts.name = name;
  facts.pid = pid;
  facts.parent = 190;
  facts.exists = true;
  const uid_t uid = 70000 + static_cast<uid_t>(pid);
  facts.uids = {uid, uid, uid, uid};
  facts.gids = {uid, uid, uid, uid};
  facts.threads = {{.tid = pid, .name = "main", .no_new_privs = true, .seccomp_mode = 2, .seccomp_filters = 1},
                   {.tid = pid + 1, .name = "device", .no_new_privs = true, .seccomp_mode = 2, .seccomp_filters = 1}};
  facts.executable = "/libexec/bulkhead-" + kind;
  facts.namespaces.emplace();
  for (const std::string space : kNamespaceKinds) {
    facts.namespaces->push_back({space, space + ":[" + std::to_string(pid) + "]", true});
  }
  facts.root = {.only_mount = true, .read_only = true, .empty = true};
  facts.hard_limits = {{"Max core file size", "0"}};
  facts.descriptors = {
      {0, FdKind::kNull, "/dev/null"}, {3, FdKind::kSocket, "socket:[1]"}, {4, FdKind::kSocket, "socket:[2]"}};
  facts.memory.emplace();
  return facts;
}

// A VM as it must be; each test changes one thing.
VmFacts Vm() {
  VmFacts vm{.name = "web1", .vcpus = 2, .memory_bytes = kMemory, .processes = {}};
  vm.processes = {Child("broker", "broker", 100),   Child("vcpu-runner", "vcpu-runner", 110),
                  Child("chipset", "chipset", 120), Child("disk0", "disk", 130),
                  Child("rng", "rng", 140),         Child("spawner", "spawner", 190)};
  ProcessFacts& broker = vm.processes[0];
  broker.parent = 1;
  broker.children = {190};
  vm.processes.back().parent = 100;
  vm.processes.back().children = {110, 120, 130, 140};
  for (ProcessFacts* process : {&broker, &vm.processes.back()}) {
    process->uids = {};
    process->gids = {};
    for (NamespaceFact& fact : *process->namespaces) fact.own = false;
    process->root = {};
  }
  for (ThreadFacts& thread : vm.processes.back().threads) thread.seccomp_mode = 0;
  for (const size_t i : {1, 3, 4}) {
    vm.processes[i].memory->guest_memory = {{kMemory, "rw-s", "memfd:guest-web1", true}};
  }
  ProcessFacts& disk = vm.processes[3];
  disk.granted = {.files = 1, .queues = 1};
  disk.descriptors->push_back({10, FdKind::kFile, "/images/a.img"});
  disk.descriptors->push_back({11, FdKind::kIoUring, "anon_inode:[io_uring]"});
  disk.descriptors->push_back({12, FdKind::kGuestMemory, "memfd:guest-web1"});
  disk.descriptors->push_back({13, FdKind::kExitRing, "memfd:exits-disk0"});
  disk.descriptors->push_back({14, FdKind::kDirtyLog, "memfd:dirty-disk0"});
  return vm;
}

// The same on a host with cgroups.
VmFacts LimitedVm() {
  VmFacts vm = Vm();
  for (size_t i = 1; i < vm.processes.size(); ++i) {
    vm.processes[i].cgroup = {.path = "/bulkhead/web1-100/" + vm.processes[i].name,
                              .limits = {{"memory.max", "67108864"}, {"pids.max", "6"}, {"cpu.max", "max 100000"}}};
  }
  return vm;
}

std::vector<std::string> Differences(const VmFacts& vm) { return CompareWithExpectations(vm, "/libexec").differences; }

TEST(Expectations, AVmAsItMustBeDiffersInNothing) {
  EXPECT_EQ(Differences(Vm()), std::vector<std::string>{});
  EXPECT_TRUE(CompareWithExpectations(Vm(), "/libexec").unseen.empty());
}

TEST(Expectations, WhereOneHasACgroupEachIsInItsOwnAndLimited) {
  EXPECT_EQ(Differences(LimitedVm()), std::vector<std::string>{});
  VmFacts vm = LimitedVm();
  vm.processes[2].cgroup.path = "/bulkhead/web1-100";
  vm.processes[3].cgroup.path = vm.processes[4].cgroup.path;
  vm.processes[4].cgroup.limits["memory.max"] = "max";
  vm.processes[1].cgroup.limits.erase("pids.max");
  EXPECT_EQ(Differences(vm), (std::vector<std::string>{"vcpu-runner: has no limit in pids.max of its cgroup",
                                                       "chipset: is in cgroup /bulkhead/web1-100, not in its own",
                                                       "disk0: is in cgroup /bulkhead/web1-100/rng, not in its own",
                                                       "rng: has no limit in memory.max of its cgroup"}));
}

TEST(Expectations, ALimitIsNoWiderThanItsKindsWorkTakes) {
  VmFacts vm = LimitedVm();
  vm.processes[2].cgroup.limits["memory.max"] = "134217729";
  vm.processes[3].cgroup.limits["pids.max"] = "40";  // one queue, 33 and 6
  vm.processes[4].cgroup.limits["memory.max"] = std::to_string((uint64_t{128} << 20) + kMemory + kMemory / 16);
  EXPECT_EQ(Differences(vm),
            (std::vector<std::string>{"chipset: has 134217729 in memory.max of its cgroup, not at most 134217728",
                                      "disk0: has 40 in pids.max of its cgroup, not at most 39"}));
}

// With user-mode networking: its outside keeps the network that the broker is in.
VmFacts UserNetVm() {
  VmFacts vm = Vm();
  vm.processes.push_back(Child("net0", "net", 150));
  vm.processes.push_back(Child("usernet0", "usernet", 160));
  vm.processes[0].children = {110, 120, 130, 140, 150, 160, 190};
  std::swap(vm.processes[5], vm.processes[7]);  // the spawner last
  std::swap(vm.processes[5], vm.processes[6]);
  ProcessFacts& net = vm.processes[5];
  net.granted = {.files = 0, .queues = 3};
  net.memory->guest_memory = {{kMemory, "rw-s", "memfd:guest-web1", true}};
  net.descriptors->push_back({10, FdKind::kPacketRing, "memfd:packets-net0"});
  ProcessFacts& usernet = vm.processes[6];
  usernet.descriptors->push_back({10, FdKind::kPacketRing, "memfd:packets-net0"});
  for (int fd = 11; fd < 40; ++fd) usernet.descriptors->push_back({fd, FdKind::kSocket, "socket:[2]"});
  const auto net_space = [](NamespaceFact& fact) { return fact.kind == "net"; };
  const auto broker = std::ranges::find_if(*vm.processes[0].namespaces, net_space);
  *std::ranges::find_if(*usernet.namespaces, net_space) = *broker;
  return vm;
}

TEST(Expectations, OneProcessKeepsTheBrokersNetworkAndHoldsNothingElse) {
  EXPECT_EQ(Differences(UserNetVm()), std::vector<std::string>{});
  VmFacts vm = UserNetVm();
  ProcessFacts& usernet = vm.processes[6];
  for (NamespaceFact& fact : *usernet.namespaces) {
    if (fact.kind == "net") fact.id = "net:[9]";
  }
  usernet.descriptors->push_back({50, FdKind::kTap, "/dev/net/tun"});
  usernet.memory->guest_memory = {{kMemory, "rw-s", "memfd:guest-web1", true}};
  EXPECT_EQ(Differences(vm), (std::vector<std::string>{"usernet0: is in another network namespace than the broker",
                                                       "usernet0: has 1 of kind tap (50: /dev/net/tun) open, not at "
                                                       "most 0",
                                                       "usernet0: has guest memory mapped"}));
}

TEST(Expectations, NobodyElseMayBeInTheNetworkThatOneKeeps) {
  VmFacts vm = UserNetVm();
  const auto kept = *std::ranges::find_if(*vm.processes[0].namespaces, [](auto& fact) { return fact.kind == "net"; });
  for (NamespaceFact& fact : *vm.processes[4].namespaces) {
    if (fact.kind == "net") fact.id = kept.id;
  }
  const auto differences = Differences(vm);
  EXPECT_NE(std::ranges::find(differences, "rng: shares the net namespace of usernet0"), differences.end());
}

TEST(Expectations, ADiskOfSeveralFilesHasThoseAndNoMore) {
  VmFacts vm = Vm();
  ProcessFacts& disk = vm.processes[3];
  disk.granted.files = 2;
  disk.descriptors->push_back({20, FdKind::kFile, "/images/base.img"});
  EXPECT_EQ(Differences(vm), std::vector<std::string>{});
  disk.descriptors->push_back({21, FdKind::kFile, "/images/other.img"});
  EXPECT_EQ(Differences(vm), std::vector<std::string>{"disk0: has 3 different files open, not at most 2: "
                                                      "/images/a.img, /images/base.img, /images/other.img"});
  // However many the broker says it gave.
  disk.granted.files = 1000;
  for (int i = 0; i < 16; ++i) disk.descriptors->push_back({30 + i, FdKind::kFile, "/images/" + std::to_string(i)});
  EXPECT_EQ(Differences(vm).size(), 1U);
}

TEST(Expectations, QueuesCountWhoeverServesThem) {
  VmFacts vm = Vm();
  ProcessFacts& disk = vm.processes[3];
  disk.descriptors->insert(disk.descriptors->end(), 20, {20, FdKind::kEventfd, "anon_inode:[eventfd]"});
  EXPECT_EQ(Differences(vm).size(), 1U) << "those of one queue are fewer";
  disk.granted.queues = 2;
  EXPECT_EQ(Differences(vm), std::vector<std::string>{}) << "one io_uring may serve two";
  disk.descriptors->insert(disk.descriptors->end(), 2, {20, FdKind::kIoUring, "anon_inode:[io_uring]"});
  EXPECT_EQ(Differences(vm).size(), 1U) << "and no queue has more than one";
}

TEST(Expectations, ACgroupThatCannotBeSeenIsSaid) {
  VmFacts vm = LimitedVm();
  vm.processes[3].cgroup.path.clear();
  EXPECT_EQ(CompareWithExpectations(vm, "/libexec").unseen, std::vector<std::string>{"cgroups"});
}

struct Change {
  const char* name;
  size_t process;
  std::function<void(ProcessFacts&)> change;
  const char* said;
};

class Expectations : public testing::TestWithParam<Change> {};

TEST_P(Expectations, EachDifferenceIsSaidInALineThatNamesTheProcess) {
  VmFacts vm = Vm();
  ProcessFacts& changed = vm.processes[GetParam().process];
  GetParam().change(changed);
  const auto differences = Differences(vm);
  ASSERT_EQ(differences.size(), 1U) << testing::PrintToString(differences);
  EXPECT_TRUE(differences[0].starts_with(changed.name + ": ")) << differences[0];
  EXPECT_NE(differences[0].find(GetParam().said), std::string::npos) << differences[0];
}

const Change kChanges[] = {
    {"Ended", 3, [](auto& p) { p.exists = false; }, "not running"},
    {"NoChildOfTheSpawner", 3, [](auto& p) { p.parent = 1; }, "not a child"},
    {"HiddenChild", 5, [](auto& p) { p.children.push_back(150); }, "process 150"},
    {"Executable", 2, [](auto& p) { p.executable = "/tmp/x"; }, "/tmp/x"},
    {"Capability", 2, [](auto& p) { p.threads[1].bounding = 0x200000; }, "0x200000"},
    {"BrokerCapability", 0, [](auto& p) { p.threads[0].permitted = 1; }, "capabilities"},
    {"NewPrivileges", 3, [](auto& p) { p.threads[1].no_new_privs = false; }, "no_new_privs"},
    {"FilterOfOneThread", 3, [](auto& p) { p.threads[1].seccomp_mode = 0; }, "no system call filter"},
    {"TwoFilters", 3, [](auto& p) { p.threads[0].seccomp_filters = 2; }, "2 system call filters"},
    {"SavedUser", 3, [](auto& p) { p.uids[2] = 0; }, "saved"},
    {"RootsUser", 3, [](auto& p) { p.uids = {}; }, "user 0"},
    {"SameUser", 3,
     [](auto& p) {
       p.uids = {70120, 70120, 70120, 70120};
     },
     "like chipset"},
    {"Groups", 3, [](auto& p) { p.groups = {4}; }, "groups"},
    {"HostNetwork", 3, [](auto& p) { p.namespaces->at(3).own = false; }, "net namespace"},
    {"NeighboursPids", 4, [](auto& p) { p.namespaces->at(1).id = "pid:[120]"; }, "pid namespace"},
    {"Mounts", 2, [](auto& p) { p.root.only_mount = false; }, "mounts"},
    {"WritableRoot", 2, [](auto& p) { p.root.read_only = false; }, "write"},
    {"Files", 2, [](auto& p) { p.root.empty = false; }, "not empty"},
    {"CoreDumps", 2, [](auto& p) { p.hard_limits["Max core file size"] = "unlimited"; }, "core"},
    {"Kvm", 3,
     [](auto& p) {
       p.descriptors->push_back({20, FdKind::kKvm, "/dev/kvm"});
     },
     "/dev/kvm"},
    {"BrokerHoldsKvm", 0,
     [](auto& p) {
       p.descriptors->push_back({20, FdKind::kKvmVm, "kvm-vm"});
     },
     "KVM VM"},
    {"TooManyVcpus", 1,
     [](auto& p) {
       p.descriptors->insert(p.descriptors->end(), 3, {20, FdKind::kKvmVcpu, "kvm-vcpu"});
     },
     "vCPU"},
    {"FifthSocket", 4,
     [](auto& p) {
       for (const int fd : {20, 21, 22}) p.descriptors->push_back({fd, FdKind::kSocket, "socket:[9]"});
     },
     "5 of kind socket"},
    {"SecondImage", 3,
     [](auto& p) {
       p.descriptors->push_back({20, FdKind::kFile, "/images/b.img"});
     },
     "b.img"},
    {"Directory", 3,
     [](auto& p) {
       p.descriptors->push_back({20, FdKind::kDirectory, "/"});
     },
     "directory"},
    {"StrangeDescriptor", 3,
     [](auto& p) {
       p.descriptors->push_back({20, FdKind::kOther, "[bpf]"});
     },
     "[bpf]"},
    {"OtherDevicesRing", 3, [](auto& p) { p.descriptors->at(5).target = "memfd:exits-rng"; }, "exits-rng"},
    {"OtherDevicesDirtyLog", 3, [](auto& p) { p.descriptors->at(7).target = "memfd:dirty-rng"; }, "dirty-rng"},
    {"OtherGuestsMemory", 3, [](auto& p) { p.descriptors->at(5).target = "memfd:guest-web2"; }, "guest-web2"},
    {"OtherGuestsMapping", 3, [](auto& p) { p.memory->guest_memory[0].name = "memfd:guest-web2"; }, "guest-web2"},
    {"ExecutableMemory", 3,
     [](auto& p) {
       p.memory->writable_executable = {{4096, "rwxp", "", false}};
     },
     "executed"},
    {"ExecutableGuestMemory", 3, [](auto& p) { p.memory->guest_memory[0].rights = "r-xs"; }, "r-xs"},
    {"ChipsetMapsGuest", 2,
     [](auto& p) {
       p.memory->guest_memory = {{4096, "rw-s", "memfd:guest-web1", true}};
     },
     "guest memory"},
    {"RngWithoutMemory", 4, [](auto& p) { p.memory->guest_memory.clear(); }, "no guest memory"},
    {"TooMuchMemory", 4, [](auto& p) { p.memory->guest_memory[0].size_bytes *= 2; }, "bytes"},
    {"UnknownKind", 4, [](auto& p) { p.name = "shell"; }, "no kind"},
};

INSTANTIATE_TEST_SUITE_P(All, Expectations, testing::ValuesIn(kChanges),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Expectations, ChildrenOfAnOrdinaryUserHaveThatUser) {
  VmFacts vm = Vm();
  for (ProcessFacts& process : vm.processes) process.uids = {1000, 1000, 1000, 1000};
  EXPECT_EQ(Differences(vm), std::vector<std::string>{});
  vm.processes[0].threads[0].bounding = 1;  // which that broker could not empty
  EXPECT_EQ(Differences(vm), std::vector<std::string>{});
  vm.processes[2].uids = {1001, 1001, 1001, 1001};
  EXPECT_EQ(Differences(vm).size(), 1U);
}

TEST(Expectations, WhatCannotBeSeenIsNotTakenForRight) {
  VmFacts vm = Vm();
  for (ProcessFacts& process : vm.processes) {
    process.descriptors.reset();
    process.memory.reset();
    process.namespaces.reset();
    process.root.empty.reset();
  }
  const Findings findings = CompareWithExpectations(vm, "/libexec");
  EXPECT_TRUE(findings.differences.empty());
  EXPECT_EQ(findings.unseen.size(), 4U) << testing::PrintToString(findings.unseen);
}

TEST(Expectations, KindsAreFoundByTheirProcessesNames) {
  ASSERT_NE(FindExpectation("disk12"), nullptr);
  EXPECT_EQ(FindExpectation("disk12")->kind, "disk");
  EXPECT_EQ(FindExpectation("vcpu-runner")->kind, "vcpu-runner");
  EXPECT_EQ(FindExpectation("disks"), nullptr);
  EXPECT_EQ(FindExpectation("12"), nullptr);
  EXPECT_EQ(FindExpectation(""), nullptr);
}

std::string MakeScript(const std::string& directory, const std::string& text) {
  const std::string path = directory + "/script";
  std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
  ::chmod(path.c_str(), 0700);
  return path;
}

TEST(ExpectedFilters, AreWhatTheExecutablePrints) {
  std::string directory = testing::TempDir() + "bulkhead.XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  const auto filters = ExpectedFilters(MakeScript(directory, R"(printf '%-24s' "$1")"));
  ASSERT_TRUE(filters.ok()) << filters.error().message;
  EXPECT_EQ(*filters, (std::vector<std::string>{"--policy=bpf            ", "--policy=bpf-kill       "}));
  EXPECT_FALSE(ExpectedFilters(MakeScript(directory, "exit 0")).ok());
  EXPECT_FALSE(ExpectedFilters(MakeScript(directory, "printf 12345678; exit 1")).ok());
  EXPECT_FALSE(ExpectedFilters(MakeScript(directory, "printf 123")).ok());
  EXPECT_FALSE(ExpectedFilters(directory + "/none").ok());
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace bulkhead::launcher
