// SPDX-License-Identifier: Apache-2.0
// What a whole VM writes to its memory is logged while somebody wants it: by its vCPUs and by each device, over the
// death of a device's process and of the broker; and not for longer.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <optional>

#include "tests/process/running_vm.h"

namespace bulkhead::test {
namespace {

constexpr uint64_t kVcpuPages = 300, kRngPages = 200, kDiskPages = 100;
// Beside those: of a device, its part of a queue and a status byte; of the vCPUs, what the payload needs itself.
constexpr uint64_t kDevicesOwn = 4, kVcpusOwn = 64;
constexpr uint64_t kId = 7;

using Counts = std::map<std::string, uint64_t>;

// A guest that writes when it is told to.
class WritingVm {
 public:
  WritingVm() {
    arguments_ = {"run",
                  "--name",
                  name_,
                  "--kernel",
                  Payload("dirty"),
                  "--memory",
                  "128M",
                  "--disk",
                  dir_.MakeImage("disk.img", 1 << 20),
                  "--console",
                  "unix=" + dir_.Path("serial"),
                  "--debug-console",
                  "file=" + dir_.Path("words"),
                  "--append",
                  "vcpu=300 rng=200 disk=100"};
    command_.emplace(arguments_);
    started_ = Eventually([&] { return Says("ready") == 1; });
    serial_ = ConnectTo(dir_.Path("serial"));
  }
  bool started() const { return started_ && serial_.valid(); }
  const std::string& name() const { return name_; }
  Command& command() { return *command_; }
  // Has it write once.
  void Write() {
    ++rounds_;
    ASSERT_EQ(::write(serial_.get(), "w", 1), 1);
    ASSERT_TRUE(Eventually([&] { return Says("written") == rounds_; })) << command_->errors();
  }
  void KillDevice(const std::string& device) {
    ASSERT_EQ(SignalTo(name_, device, SIGKILL), 0);
    const std::string sign = device + " goes on after";
    ASSERT_TRUE(command_->WaitUntil([&] { return command_->errors().find(sign) != std::string::npos; }))
        << command_->errors();
  }
  // With the launcher stopped there is none until it goes on.
  void StopLauncherAndKillBroker() {
    const pid_t broker = BrokerOf(name_);
    ASSERT_GT(broker, 0);
    command_->Signal(SIGSTOP);
    ASSERT_EQ(::kill(broker, SIGKILL), 0);
  }
  void LoseBroker() {
    const pid_t before = BrokerOf(name_);
    ASSERT_GT(before, 0);
    ASSERT_EQ(::kill(before, SIGKILL), 0);
    EXPECT_TRUE(Eventually([&] {
      const pid_t now = BrokerOf(name_);
      return now > 0 && now != before;
    })) << command_->errors();
  }
  // Whether any process is told to log; as root. None: there is no broker that could be looked at.
  std::optional<bool> Logs() const {
    std::error_code gone;
    bool found = false;
    const std::string descriptors = "/proc/" + std::to_string(BrokerOf(name_)) + "/fd";
    for (const auto& entry : std::filesystem::directory_iterator(descriptors, gone)) {
      if (std::filesystem::read_symlink(entry, gone).string().find("memfd:dirty-") == std::string::npos) continue;
      const OwnFd log(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
      found = found || log.valid();
      uint32_t on = 0;
      if (::pread(log.get(), &on, sizeof on, 0) == sizeof on && on != 0) return true;
    }
    return found ? std::optional(false) : std::nullopt;
  }

 private:
  unsigned Says(const std::string& word) const {
    const std::string words = ReadFile(dir_.Path("words"));
    unsigned count = 0;
    for (size_t at = 0; (at = words.find(word, at)) != std::string::npos; ++at) ++count;
    return count;
  }

  const TempDir dir_;
  const std::string name_ = UniqueName();
  std::vector<std::string> arguments_;
  std::optional<Command> command_;
  OwnFd serial_;
  bool started_ = false;
  unsigned rounds_ = 0;
};

class Log {
 public:
  explicit Log(const std::string& vm, uint64_t id = kId) : control_(vm), log_(nullptr) {
    auto request = control_.vm().logWritesRequest();
    request.setId(id);
    log_ = request.send().wait(control_.wait()).getLog();
  }
  Counts Take() {
    const auto response = log_.takeRequest().send().wait(control_.wait());
    Counts counts{{"", response.getReport().getPages()}};
    for (auto writer : response.getReport().getWriters()) counts[writer.getName().cStr()] = writer.getPages();
    return counts;
  }

 private:
  ControlConnection control_;
  control::WriteLog::Client log_;
};

void ExpectOneRoundOrMore(const Counts& counts) {
  EXPECT_GE(counts.at("vcpu-runner"), kVcpuPages);
  EXPECT_LE(counts.at("vcpu-runner"), kVcpuPages + kVcpusOwn);
  EXPECT_GE(counts.at("rng"), kRngPages + 1);
  EXPECT_LE(counts.at("rng"), kRngPages + kDevicesOwn);
  EXPECT_GE(counts.at("disk0"), kDiskPages + 1);
  EXPECT_LE(counts.at("disk0"), kDiskPages + kDevicesOwn);
  EXPECT_FALSE(counts.contains("console")) << "it has no guest memory";
  EXPECT_GE(counts.at(""), kVcpuPages + kRngPages + kDiskPages);
  EXPECT_LE(counts.at(""), counts.at("vcpu-runner") + counts.at("rng") + counts.at("disk0"));
}

TEST(WriteLog, SaysWhoWroteHowMuch) {
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.Write();
  {
    Log log(vm.name());
    const Counts before = log.Take();
    EXPECT_EQ(before.at("rng"), 0u) << "what was written before";
    EXPECT_LE(before.at("vcpu-runner"), kVcpusOwn);
    EXPECT_THROW(Log(vm.name(), kId + 1), kj::Exception) << "one at a time";
    EXPECT_THROW(Log(vm.name(), kId), kj::Exception);
    for (int i = 0; i < 2; ++i) {
      vm.Write();
      ExpectOneRoundOrMore(log.Take());
    }
    vm.Write();
  }
  // Another one knows nothing of what was left.
  EXPECT_TRUE(Eventually([&] {
    try {
      return Log(vm.name(), kId + 2).Take().at("rng") == 0;
    } catch (const kj::Exception&) {
      return false;  // the broker has yet to see that the connection has ended
    }
  }));
}

TEST(WriteLog, MissesNothingOverADevicesDeath) {
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  Log log(vm.name());
  vm.Write();
  for (const std::string device : {"rng", "disk0"}) vm.KillDevice(device);
  ExpectOneRoundOrMore(log.Take());
  // Those that took their places log, too.
  vm.Write();
  ExpectOneRoundOrMore(log.Take());
}

TEST(WriteLog, MissesNothingOverTheBrokersDeath) {
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  {
    const Log log(vm.name());
    vm.Write();
    vm.LoseBroker();
  }
  {
    Log log(vm.name());
    ExpectOneRoundOrMore(log.Take());
    vm.StopLauncherAndKillBroker();
  }
  // While there is none.
  vm.Write();
  vm.command().Signal(SIGCONT);
  Log log(vm.name());
  ExpectOneRoundOrMore(log.Take());
  vm.Write();
  ExpectOneRoundOrMore(log.Take());
}

TEST(WriteLog, EndsWithWhoeverWantedIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees whether processes are told to log";
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  EXPECT_EQ(vm.Logs(), false);
  {
    Command rate({"dirty-rate", vm.name(), "--seconds", "3600"});
    EXPECT_TRUE(Eventually([&] { return vm.Logs() == true; })) << rate.errors();
    rate.Signal(SIGKILL);
    EXPECT_EQ(rate.Wait(), 128 + SIGKILL);
  }
  EXPECT_TRUE(Eventually([&] { return vm.Logs() == false; }));
  // Nobody claims it of the next broker.
  {
    Command rate({"dirty-rate", vm.name(), "--seconds", "3600"});
    EXPECT_TRUE(Eventually([&] { return vm.Logs() == true; })) << rate.errors();
    vm.StopLauncherAndKillBroker();
    rate.Signal(SIGKILL);
    EXPECT_EQ(rate.Wait(), 128 + SIGKILL);
    vm.command().Signal(SIGCONT);
  }
  EXPECT_TRUE(Eventually([&] { return vm.Logs() == true; })) << "the next broker keeps it for a while";
  EXPECT_TRUE(Eventually([&] { return vm.Logs() == false; }));
}

TEST(DirtyRate, CountsPagesByWriter) {
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const Finished table = RunBulkhead({"dirty-rate", vm.name()});
  EXPECT_EQ(table.status, 0) << table.errors;
  for (const char* word : {"WRITTEN BY", "vcpu-runner", "disk0", "rng", "any of them"}) {
    EXPECT_NE(table.output.find(word), std::string::npos) << table.output;
  }
  const Finished json = RunBulkhead({"dirty-rate", vm.name(), "--seconds", "1", "--json"});
  EXPECT_EQ(json.status, 0) << json.errors;
  EXPECT_NE(json.output.find("\"mib_per_second\""), std::string::npos) << json.output;
  EXPECT_EQ(RunBulkhead({"dirty-rate", "no-such-vm"}).status, 1);
}

// It asks the next one, which has the log.
TEST(DirtyRate, OutlivesTheBroker) {
  WritingVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  Command rate({"dirty-rate", vm.name(), "--seconds", "5"});
  vm.LoseBroker();
  EXPECT_EQ(rate.Wait(), 0) << rate.errors();
  EXPECT_NE(rate.output().find("any of them"), std::string::npos) << rate.output();
}

}  // namespace
}  // namespace bulkhead::test
