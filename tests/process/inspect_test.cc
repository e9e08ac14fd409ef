// SPDX-License-Identifier: Apache-2.0
// `bulkhead inspect` of running VMs: what it shows is what the kernel says, what it verifies can fail, and what the
// README says of the processes is what runs.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

using nlohmann::json;

bool IsRoot() { return ::geteuid() == 0; }

// A VM with one of everything, whose outside is in files of its own and, where root starts it, in a network of its own.
class FullVm {
 public:
  explicit FullVm(const std::vector<std::string>& more = {})
      : name_(UniqueName()),
        image_(dir_.MakeImage("disk.img", 1 << 20)),
        console_(dir_.Path("console.log")),
        debug_(dir_.Path("debug.log")),
        command_(Arguments(more), [](Launch&) { return !IsRoot() || ::unshare(CLONE_NEWNET) == 0; }) {
    started_ = command_.WaitUntil([&] { return ReadFile(debug_).find("idle") != std::string::npos; });
  }

  bool started() const { return started_; }
  const std::string& name() const { return name_; }
  const std::string& image() const { return image_; }
  const std::string& console() const { return console_; }
  const std::string& debug() const { return debug_; }
  const Command& command() const { return command_; }
  Finished Inspect(const std::string& option) const { return RunBulkhead({"inspect", name_, option}); }
  json Json() const { return json::parse(Inspect("--json").output, nullptr, false); }
  static std::vector<std::string> Processes() {
    std::vector<std::string> names{"broker", "vcpu-runner", "chipset", "console", "disk0", "rng", "spawner"};
    if (IsRoot()) names.emplace_back("net0");
    for (const char* kind : {"net", "usernet"}) names.push_back(kind + std::string(IsRoot() ? "1" : "0"));
    return names;
  }

 private:
  std::vector<std::string> Arguments(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments{
        "run",  "--name",          name_,           "--kernel",  Payload("idle"),    "--cpus",
        "2",    "--disk",          image_,          "--console", "file=" + console_, "--virtio-console",
        "none", "--debug-console", "file=" + debug_};
    if (IsRoot()) arguments.insert(arguments.end(), {"--net", "tap=tap0"});
    arguments.insert(arguments.end(), {"--net", "user"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  TempDir dir_;
  std::string name_;
  std::string image_;
  std::string console_;
  std::string debug_;
  Command command_;
  bool started_ = false;
};

const json* FindProcess(const json& report, const std::string& name) {
  for (const json& process : report.at("processes")) {
    if (process.at("name") == name) return &process;
  }
  return nullptr;
}

TEST(Inspect, TableHasALineAndAParagraphForEachProcessAndFitsATerminal) {
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const Finished shown = RunBulkhead({"inspect", vm.name()});
  ASSERT_EQ(shown.status, 0) << shown.errors;
  std::istringstream lines(shown.output);
  std::map<std::string, int> begins;
  for (std::string line; std::getline(lines, line);) {
    ++begins[line.substr(0, line.find(' '))];
    // Paths of the test's own are as long as they are.
    if (line.find('/') == std::string::npos) {
      EXPECT_LE(line.size(), 100U) << line;
    }
  }
  for (const std::string& process : FullVm::Processes()) {
    EXPECT_EQ(begins[process], 2) << process << "\n" << shown.output;
  }
  EXPECT_EQ(shown.output.find("root sees all") == std::string::npos, IsRoot()) << shown.output;
}

TEST(Inspect, JsonHasWhatTheKernelSays) {
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const json report = vm.Json();
  ASSERT_FALSE(report.is_discarded());
  EXPECT_EQ(report.at("name"), vm.name());
  EXPECT_EQ(report.at("state"), "running");
  EXPECT_EQ(report.at("vcpus"), 2);
  ASSERT_EQ(report.at("processes").size(), FullVm::Processes().size());
  for (const json& process : report.at("processes")) {
    const std::string name = process.at("name");
    EXPECT_EQ(process.at("pid"), ProcessOf(vm.name(), name)) << name;
    EXPECT_EQ(process.at("threads").size(), ThreadStatuses(process.at("pid")).size()) << name;
    EXPECT_EQ(process.at("limits").at("Max core file size"), "0") << name;
    if (name == "spawner") continue;
    for (const json& thread : process.at("threads")) EXPECT_EQ(thread.at("seccomp_mode"), 2) << name;
    EXPECT_EQ(process.at("capabilities"), json::array()) << name;
  }
}

TEST(Inspect, InterfacesHaveTheirLinkAndWhatTheyCarried) {
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const json report = vm.Json();
  for (const std::string& process : FullVm::Processes()) {
    const bool is_net = process.starts_with("net");
    ASSERT_EQ(FindProcess(report, process)->contains("interface"), is_net) << process;
    if (!is_net) continue;
    const json& interface = FindProcess(report, process)->at("interface");
    EXPECT_EQ(interface.at("link"), "up");
    EXPECT_EQ(interface.at("sent"), (json{{"packets", 0}, {"bytes", 0}, {"dropped", 0}, {"refused", 0}}));
    EXPECT_TRUE(interface.contains("received"));
  }
}

TEST(SetLink, IsSeenAndWhatCannotBeIsSaid) {
  const FullVm vm({"--device-restarts", "0"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const std::string net = IsRoot() ? "net1" : "net0", outside = "user" + net;
  const auto set = [&](const std::string& interface, const char* state) {
    return RunBulkhead({"set-link", vm.name(), interface, state});
  };
  const auto link = [&] { return FindProcess(vm.Json(), net)->at("interface").at("link"); };
  EXPECT_EQ(set(net, "off").status, 0);
  EXPECT_EQ(link(), "down");
  EXPECT_EQ(set(net, "on").status, 0);
  EXPECT_EQ(link(), "up");
  const Finished unknown = set("disk0", "off");
  EXPECT_EQ(unknown.status, 1);
  EXPECT_NE(unknown.errors.find("no network interface 'disk0' of which that can be asked; it has net0"),
            std::string::npos)
      << unknown.errors;
  ASSERT_EQ(SignalTo(vm.name(), outside, SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return link() == "down (its outside is gone)"; }));
  EXPECT_EQ(set(net, "off").status, 0);
  const Finished gone = set(net, "on");
  EXPECT_EQ(gone.status, 1);
  EXPECT_NE(gone.errors.find("the link of '" + net + "' stays down: its outside is gone"), std::string::npos)
      << gone.errors;
}

// Holds a process still without its parent's hearing of it, as only root can.
class Freezer {
 public:
  explicit Freezer(pid_t pid) : pid_(pid) {
    frozen_ = ::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) == 0 &&
              ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) == 0 && ::waitpid(pid, nullptr, __WALL) == pid;
  }
  ~Freezer() {
    if (frozen_) ::ptrace(PTRACE_DETACH, pid_, nullptr, nullptr);
  }
  bool frozen() const { return frozen_; }

 private:
  pid_t pid_;
  bool frozen_;
};

TEST(Inspect, ANetProcessThatHangsDoesNotAnswerAndHoldsUpNobody) {
  if (!IsRoot()) GTEST_SKIP() << "only root may freeze another process";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  {
    const Freezer freezer(ProcessOf(vm.name(), "net1"));
    ASSERT_TRUE(freezer.frozen());
    for (int i = 0; i < 2; ++i) {
      const json report = vm.Json();
      ASSERT_FALSE(report.is_discarded());
      EXPECT_TRUE(FindProcess(report, "net1")->at("interface").is_null());
      EXPECT_EQ(FindProcess(report, "net0")->at("interface").at("link"), "up");
    }
    EXPECT_NE(RunBulkhead({"inspect", vm.name()}).output.find("link          no answer"), std::string::npos);
    EXPECT_EQ(vm.Json().at("state"), "running");
  }
  EXPECT_EQ(FindProcess(vm.Json(), "net1")->at("interface").at("link"), "up");
}

TEST(Inspect, RootSeesDescriptorsMemoryAndFilters) {
  if (!IsRoot()) GTEST_SKIP() << "only root sees them";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const json report = vm.Json();
  const json& runner = *FindProcess(report, "vcpu-runner");
  EXPECT_EQ(runner.at("descriptors").at("by_kind").at("KVM vCPU"), 2);
  EXPECT_EQ(runner.at("memory").at("guest_bytes"), report.at("memory_bytes"));
  EXPECT_EQ(runner.at("memory").at("writable_executable_mappings"), 0);
  EXPECT_TRUE(runner.at("namespaces").at("net").at("own"));
  EXPECT_EQ(runner.at("root").at("empty"), true);
  const auto& calls = runner.at("system_calls").at("allowed");
  EXPECT_NE(std::find(calls.begin(), calls.end(), "ioctl"), calls.end());
  EXPECT_EQ(std::find(calls.begin(), calls.end(), "openat"), calls.end());
  EXPECT_EQ(FindProcess(report, "chipset")->at("memory").at("guest_bytes"), 0);
}

TEST(Inspect, AVmLeftAloneVerifiesAgainAndAgainAndRunsOn) {
  if (!IsRoot()) GTEST_SKIP() << "only root sees all that is verified";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (int i = 0; i < 10; ++i) {
    const Finished verified = vm.Inspect("--verify");
    EXPECT_EQ(verified.status, 0) << verified.output;
    EXPECT_EQ(verified.output, vm.name() + ": 10 processes verified\n");
  }
  for (const std::string& process : FullVm::Processes()) {
    EXPECT_GT(ProcessOf(vm.name(), process), 0) << process;
  }
  EXPECT_EQ(vm.Json().at("state"), "running");
}

// From outside, as only root can.
bool MakeRootWritable(pid_t pid) {
  const pid_t intruder = ::fork();
  if (intruder == 0) {
    const OwnFd mounts(::open(("/proc/" + std::to_string(pid) + "/ns/mnt").c_str(), O_RDONLY | O_CLOEXEC));
    const bool done =
        ::setns(mounts.get(), CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REMOUNT | MS_BIND, nullptr) == 0;
    ::_exit(done ? 0 : 1);
  }
  int status = -1;
  ::waitpid(intruder, &status, 0);
  return status == 0;
}

TEST(Inspect, VerifyNamesAWallThatWasTakenDownAndFails) {
  if (!IsRoot()) GTEST_SKIP() << "only root may change another process";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const pid_t rng = ProcessOf(vm.name(), "rng");
  ASSERT_GT(rng, 0);
  ASSERT_TRUE(MakeRootWritable(rng));
  const Finished verified = vm.Inspect("--verify");
  EXPECT_EQ(verified.status, 1);
  EXPECT_EQ(verified.output, vm.name() + ": rng: may write to its root directory\n");
}

TEST(Inspect, VerifyByAUserWhoDoesNotSeeAllSaysSoAndFails) {
  if (IsRoot()) GTEST_SKIP() << "root sees all";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const Finished verified = vm.Inspect("--verify");
  EXPECT_EQ(verified.status, 1);
  EXPECT_TRUE(verified.output.starts_with(vm.name() + ": cannot be verified by this user, but by root: "))
      << verified.output;
}

// Without Markdown's marks and the blanks around.
std::string Plain(std::string text) {
  std::erase_if(text, [](char c) { return c == '*' || c == '`'; });
  const size_t first = text.find_first_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// The rows of the README's table "process | host resources | guest memory | system calls", by process.
std::map<std::string, std::vector<std::string>> ReadmeTable() {
  std::map<std::string, std::vector<std::string>> rows;
  std::istringstream lines(ReadFile(BuildDir() + "/../README.md"));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("| process ")) inside = true;
    if (!line.starts_with("|")) inside = false;
    if (!inside || line.starts_with("|-") || line.starts_with("| process ")) continue;
    std::istringstream cells(line.substr(1));
    std::vector<std::string> row;
    for (std::string cell; std::getline(cells, cell, '|');) row.push_back(Plain(cell));
    if (row.size() == 4) rows[row[0]] = row;
  }
  return rows;
}

// Files, block devices, terminals and the like that a process has open, and sockets and pipes beyond its own: the
// connection to the broker, what brings another broker's, of a device the line for signs of life, and the log. One may
// be open twice, as the message that it came with may still hold it.
std::set<std::string> HostResources(const json& process) {
  std::set<std::string> resources;
  const std::map<std::string, size_t> most{{"socket", process.at("name") == "vcpu-runner" ? 2 : 3}, {"pipe", 1}};
  std::map<std::string, std::set<std::string>> own;
  for (const json& fd : process.at("descriptors").at("all")) {
    const std::string kind = fd.at("kind");
    if (kind == "socket" || kind == "pipe") {
      const std::string target = fd.at("target");
      if (!own[kind].contains(target) && own[kind].size() == most.at(kind)) resources.insert(target);
      if (own[kind].size() < most.at(kind)) own[kind].insert(target);
    } else if (kind == "file" || kind == "block device" || kind == "terminal" || kind == "directory" || kind == "tap" ||
               kind == "vhost-net" || kind == "/dev/kvm" || kind == "other" || kind == "other memfd") {
      resources.insert(fd.at("target"));
    }
  }
  return resources;
}

TEST(Readme, TableOfProcessesIsTrueOfARunningVm) {
  if (!IsRoot()) GTEST_SKIP() << "only root sees all that the table says";
  const auto rows = ReadmeTable();
  ASSERT_FALSE(rows.empty()) << "README.md has no table of processes";
  const FullVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const json report = vm.Json();
  const std::map<std::string, std::set<std::string>> resources = {
      {"none", {}},
      {"one image, with the files below it", {vm.image()}},
      {"what its consoles lead to", {vm.console()}},
      {"one tap, with vhost=on also vhost-net; none with --net user", {"/dev/net/tun"}},
      {"the host's network, and its forwarded ports", {}},
      {"the debug console's output, where asked for", {vm.debug()}},
  };
  std::set<std::string> processes;
  for (const json& process : report.at("processes")) {
    const std::string name = process.at("name");
    if (name == "broker" || name == "spawner") continue;
    const std::string digits = "0123456789";
    const bool numbered = digits.find(name.back()) != std::string::npos;
    const std::string row_name = numbered ? name.substr(0, name.find_last_not_of(digits) + 1) + "N" : name;
    const auto row = rows.find(row_name);
    ASSERT_NE(row, rows.end()) << name << " runs but is not in the table";
    processes.insert(row_name);
    const auto expected = resources.find(row->second[1]);
    ASSERT_NE(expected, resources.end()) << "this test does not know the host resources '" << row->second[1] << "'";
    // The one with --net user.
    EXPECT_EQ(HostResources(process), name == "net1" ? std::set<std::string>{} : expected->second) << name;
    const bool maps_memory = process.at("memory").at("guest_bytes") != 0;
    // This VM has a virtio console.
    EXPECT_EQ(maps_memory, row->second[2] != "none") << name;
    EXPECT_EQ(std::to_string(process.at("system_calls").at("allowed").size()), row->second[3]) << name;
  }
  for (const auto& [name, row] : rows) EXPECT_TRUE(processes.contains(name)) << name << " is in the table, but not run";
}

}  // namespace
}  // namespace bulkhead::test
