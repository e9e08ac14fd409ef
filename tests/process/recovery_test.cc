// SPDX-License-Identifier: Apache-2.0
// Device processes die, hang and are upgraded under a guest that checks all that it gets (tests/payload/endure.cc): it
// notices nothing but a delay. BULKHEAD_CHAOS_FAULTS and BULKHEAD_CHAOS_SEED are for more of them than each run has.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>

#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr uint64_t kDiskBytes = 2 << 20;
constexpr std::array kDevices{"disk0", "rng", "console", "chipset"};

enum class Disk { kRaw, kQcow2 };

class EnduringVm {
 public:
  explicit EnduringVm(std::vector<std::string> more = {}, Disk disk = Disk::kRaw)
      : name_(UniqueName()), image_(dir_.MakeImage("disk.img", kDiskBytes)), console_(dir_.Path("console.log")) {
    std::vector<std::string> arguments{"run",    "--name",     name_,       "--kernel",         Payload("endure"),
                                       "--disk", DiskOf(disk), "--console", "file=" + console_, "--debug-console",
                                       "stdio"};
    if (more.empty()) more = {"--device-restarts", "1000000"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    command_ = std::make_unique<Command>(arguments);
    started_ = command_->WaitForOutput("enduring");
  }

  bool started() const { return started_; }
  const std::string& name() const { return name_; }
  // Of Disk::kQcow2, which lies on the raw one: what the guest wrote.
  std::string top() const { return dir_.Path("top.qcow2"); }
  Command& command() { return *command_; }

  // How many rounds it has told of.
  uint64_t Rounds() const {
    const std::string text = ReadFile(console_);
    return static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n'));
  }
  bool GoesOn() const {
    const uint64_t before = Rounds();
    return Eventually([&] { return Rounds() > before + 1; });
  }
  // Another process than that serves the device.
  bool Replaced(const char* device, pid_t before) const {
    return Eventually([&] {
      const pid_t now = ProcessOf(name_, device);
      return now > 0 && now != before;
    });
  }
  // Sends the signal to the device's process, and waits for another one.
  void Lose(const char* device, int signal) const {
    const pid_t before = ProcessOf(name_, device);
    ASSERT_EQ(SignalTo(name_, device, signal), 0) << device;
    EXPECT_TRUE(Replaced(device, before)) << device;
  }
  void Stop() {
    const OwnFd image(::open(image_.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(image.get(), "stop", 4, kDiskBytes - 512), 4);
    ASSERT_EQ(::fsync(image.get()), 0);
    EXPECT_EQ(command_->Wait(), 0) << command_->errors();
    EXPECT_NE(command_->output().find("PASS endure"), std::string::npos) << command_->output() << command_->errors();
    EXPECT_EQ(command_->errors().find("given up"), std::string::npos) << command_->errors();
  }
  // Each line is there, in its order. A kill in the middle of a write may repeat the end of what was written.
  void ExpectConsoleComplete() const {
    const std::string text = ReadFile(console_);
    size_t at = 0;
    for (uint64_t round = 1; round <= Rounds() && at != std::string::npos; ++round) {
      at = text.find(std::to_string(round) + "\n", at);
      if (at == std::string::npos) {
        EXPECT_GT(round, 1u) << text;
        break;
      }
    }
  }

 private:
  // The guest never writes where Stop does, so that comes through from below.
  std::string DiskOf(Disk disk) const {
    if (disk == Disk::kRaw) return image_;
    const Finished made =
        RunBulkhead({"img", "create", "-f", "qcow2", "-b", image_, "-F", "raw", "-o", "cluster_size=4k", top()});
    EXPECT_EQ(made.status, 0) << made.errors;
    return top() + ",format=qcow2,backing=" + image_ + ",backing-format=raw";
  }

  TempDir dir_;
  std::string name_;
  std::string image_;
  std::string console_;
  std::unique_ptr<Command> command_;
  bool started_ = false;
};

TEST(Recovery, AnotherProcessTakesThePlaceOfEachDeviceThatIsKilled) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const char* device : kDevices) {
    vm.Lose(device, SIGKILL);
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.command().output() << vm.command().errors();
  }
  vm.Stop();
  vm.ExpectConsoleComplete();
}

TEST(Recovery, InspectFindsTheWallsOfItsPredecessorAroundEach) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees all that is verified";
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const char* device : kDevices) vm.Lose(device, SIGKILL);
  EXPECT_TRUE(vm.GoesOn());
  const Finished verified = RunBulkhead({"inspect", vm.name(), "--verify"});
  EXPECT_EQ(verified.status, 0) << verified.output;
  vm.Stop();
}

TEST(Recovery, OneThatHangsIsReplacedToo) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const char* device : {"chipset", "disk0"}) {
    vm.Lose(device, SIGSTOP);
    EXPECT_TRUE(vm.GoesOn()) << device;
  }
  vm.Stop();
}

// How many deaths that takes is a matter of how fast this machine starts processes: two that are less than a minute
// apart.
TEST(Recovery, OneThatKeepsDyingIsGivenUpAndTheVmGoesOn) {
  EnduringVm vm({"--device-restarts", "1"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const auto given_up = [&] {
    return vm.command().errors().find("device given up: rng was killed by signal 9 (Killed), after 1 others") !=
           std::string::npos;
  };
  for (int death = 0; death < 20 && !given_up(); ++death) {
    const pid_t before = ProcessOf(vm.name(), "rng");
    SignalTo(vm.name(), "rng", SIGKILL);
    ASSERT_TRUE(vm.command().WaitUntil([&] {
      const pid_t now = ProcessOf(vm.name(), "rng");
      return given_up() || (now > 0 && now != before);
    })) << vm.command().errors();
  }
  EXPECT_TRUE(given_up()) << vm.command().errors();
  EXPECT_GT(ProcessOf(vm.name(), "disk0"), 0);
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
}

TEST(Recovery, UpgradeReplacesEveryDevice) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  std::array<pid_t, kDevices.size()> before{};
  for (size_t i = 0; i < kDevices.size(); ++i) before[i] = ProcessOf(vm.name(), kDevices[i]);
  const Finished all = RunBulkhead({"upgrade", vm.name()});
  EXPECT_EQ(all.status, 0) << all.errors;
  for (size_t i = 0; i < kDevices.size(); ++i) {
    EXPECT_NE(all.output.find(std::string(kDevices[i]) + ": replaced"), std::string::npos) << all.output;
    EXPECT_NE(ProcessOf(vm.name(), kDevices[i]), before[i]) << kDevices[i];
  }
  EXPECT_TRUE(vm.GoesOn());
  EXPECT_EQ(RunBulkhead({"upgrade", vm.name(), "disk0"}).output.find("disk0: replaced"), 0u);
  const Finished wrong = RunBulkhead({"upgrade", vm.name(), "disk7"});
  EXPECT_EQ(wrong.status, 1);
  EXPECT_NE(wrong.errors.find("no device 'disk7'"), std::string::npos) << wrong.errors;
  vm.Stop();
}

void DieManyTimes(EnduringVm& vm) {
  const unsigned faults = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 40);
  const unsigned seed = FromEnvironment("BULKHEAD_CHAOS_SEED", 1);
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  std::mt19937 random(seed);
  for (unsigned fault = 0; fault < faults; ++fault) {
    const char* device = kDevices[random() % kDevices.size()];
    const int signal = random() % 8 == 0 ? SIGSTOP : SIGKILL;
    const pid_t before = ProcessOf(vm.name(), device);
    // Nobody may be there: the fault before this one was the same device's.
    if (before <= 0 || SignalTo(vm.name(), device, signal) != 0) continue;
    // Now and then the next one follows at once.
    if (random() % 4 == 0) continue;
    ASSERT_TRUE(vm.Replaced(device, before)) << "fault " << fault << " of seed " << seed << ": " << device << "\n"
                                             << vm.command().output() << vm.command().errors();
    ::usleep(random() % 30'000);
  }
  EXPECT_TRUE(vm.GoesOn()) << vm.command().output() << vm.command().errors();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

TEST(Recovery, ManyDeathsUnderLoad) {
  EnduringVm vm;
  DieManyTimes(vm);
}

TEST(Recovery, ManyDeathsUnderLoadOnAnImageWithTables) {
  EnduringVm vm({}, Disk::kQcow2);
  DieManyTimes(vm);
  const Finished checked = RunBulkhead({"img", "check", vm.top()});
  constexpr int kLeaks = 3;
  EXPECT_TRUE(checked.status == 0 || checked.status == kLeaks) << checked.output << checked.errors;
}

}  // namespace
}  // namespace bulkhead::test
