// SPDX-License-Identifier: Apache-2.0
// Device processes and brokers die, hang and are upgraded under a guest that checks all that it gets
// (tests/payload/endure.cc): it notices nothing but a delay. BULKHEAD_CHAOS_FAULTS and BULKHEAD_CHAOS_SEED are for more
// of them than each run has.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "tests/process/enduring_vm.h"
#include "tests/process/faults.h"
#include "tests/process/process_cgroup.h"

namespace bulkhead::test {
namespace {

TEST(Recovery, AnotherProcessTakesThePlaceOfEachDeviceThatIsKilled) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string& device : vm.devices()) {
    vm.Lose(device, SIGKILL);
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
  }
  vm.Stop();
  vm.ExpectConsoleComplete();
}

TEST(Recovery, InspectFindsTheWallsOfItsPredecessorAroundEach) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees all that is verified";
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string& device : vm.devices()) {
    vm.Lose(device, SIGKILL);
    // The guest does not wait for each.
    EXPECT_TRUE(vm.command().WaitUntil([&] {
      return vm.command().errors().find(device + " goes on after") != std::string::npos;
    })) << device;
  }
  EXPECT_TRUE(vm.GoesOn());
  const Finished verified = vm.Run({"inspect", vm.name(), "--verify"});
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
  EnduringVm vm({.more = {"--device-restarts", "1"}});
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
  std::vector<pid_t> before;
  for (const std::string& device : vm.devices()) before.push_back(ProcessOf(vm.name(), device));
  const Finished all = RunBulkhead({"upgrade", vm.name()});
  EXPECT_EQ(all.status, 0) << all.errors;
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_NE(all.output.find(vm.devices()[i] + ": replaced"), std::string::npos) << all.output;
    EXPECT_NE(ProcessOf(vm.name(), vm.devices()[i]), before[i]) << vm.devices()[i];
  }
  EXPECT_TRUE(vm.GoesOn());
  EXPECT_EQ(RunBulkhead({"upgrade", vm.name(), "disk0"}).output.find("disk0: replaced"), 0u);
  const Finished wrong = RunBulkhead({"upgrade", vm.name(), "disk7"});
  EXPECT_EQ(wrong.status, 1);
  EXPECT_NE(wrong.errors.find("no device 'disk7'"), std::string::npos) << wrong.errors;
  vm.Stop();
}

constexpr char kCannotHold[] = "holding a process without a signal takes root and cgroup v2";

// One that is slow is none that has died.
TEST(Recovery, OneThatAnswersLateGoesOn) {
  EnduringVm vm({.more = {"--exit-deadline", "60000"}});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string& device : vm.devices()) {
    const pid_t before = ProcessOf(vm.name(), device);
    const auto cgroup = ProcessCgroup::Of(before);
    if (!cgroup) GTEST_SKIP() << kCannotHold;
    ASSERT_TRUE(cgroup->Hold()) << device;
    const uint64_t rounds = vm.Rounds();
    ::usleep(300'000);
    // Of a round that was under way the line may come yet; interfaces are what no round waits for.
    if (device.find("net") == std::string::npos) {
      EXPECT_LE(vm.Rounds(), rounds + 1) << device;
    }
    cgroup->LetGo();
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
    EXPECT_EQ(ProcessOf(vm.name(), device), before) << device;
  }
  vm.Stop();
  EXPECT_EQ(vm.command().errors().find("takes its place"), std::string::npos) << vm.command().errors();
  vm.ExpectConsoleComplete();
}

// Holds the device's process until there is another one, which is born in the same cgroup. False where nobody can.
bool HoldUntilReplaced(EnduringVm& vm, const std::string& device) {
  const pid_t before = ProcessOf(vm.name(), device);
  const auto cgroup = ProcessCgroup::Of(before);
  if (!cgroup) return false;
  EXPECT_TRUE(cgroup->Hold()) << device;
  const auto gone = [&] { return ProcessOf(vm.name(), device) != before; };
  EXPECT_TRUE(vm.command().WaitUntil(gone)) << device << "\n" << vm.said();
  cgroup->LetGo();
  EXPECT_TRUE(vm.Replaced(device, before)) << device;
  EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
  return true;
}

TEST(Recovery, OneThatAnswersTooLateIsReplaced) {
  EnduringVm vm({.more = {"--exit-deadline", "500", "--device-restarts", "1000000"}});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const char* device : {"chipset", "console"}) {
    if (!HoldUntilReplaced(vm, device)) GTEST_SKIP() << kCannotHold;
    EXPECT_NE(vm.command().errors().find(std::string(device) + " did not answer the guest within 500 ms"),
              std::string::npos)
        << vm.command().errors();
  }
  vm.Stop();
  vm.ExpectConsoleComplete();
}

// No vCPU waits for these, or for as long as the guest gets by without them.
TEST(Recovery, OneThatHangsUnnoticedByTheGuestIsReplaced) {
  EnduringVm vm({.more = {"--exit-deadline", "500", "--device-restarts", "1000000"}});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  bool by_pulse = false;
  for (const std::string& device : vm.devices()) {
    if (!HoldUntilReplaced(vm, device)) GTEST_SKIP() << kCannotHold;
    by_pulse = by_pulse || vm.command().errors().find(device + " hangs: it has given no sign of life for 1000 ms") !=
                               std::string::npos;
  }
  EXPECT_TRUE(by_pulse) << vm.command().errors();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

// A successor that is held from its birth on gets no further, and has one of its own in the end.
TEST(Recovery, OneThatIsTooSlowToTakeOverIsFollowedByAnother) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const pid_t before = ProcessOf(vm.name(), "rng");
  const auto cgroup = ProcessCgroup::Of(before);
  if (!cgroup) GTEST_SKIP() << kCannotHold;
  ASSERT_TRUE(cgroup->Hold());
  ASSERT_EQ(SignalTo(vm.name(), "rng", SIGKILL), 0);
  EXPECT_TRUE(vm.command().WaitUntil([&] {
    return vm.command().errors().find("rng's successor did not get ready in time") != std::string::npos;
  })) << vm.said();
  cgroup->LetGo();
  EXPECT_TRUE(vm.Replaced("rng", before)) << vm.said();
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

TEST(Recovery, OneThatRunsOutOfMemoryIsReplaced) {
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string& device : vm.devices()) {
    const pid_t before = ProcessOf(vm.name(), device);
    const auto cgroup = ProcessCgroup::Of(before);
    if (!cgroup) GTEST_SKIP() << "to limit a process's memory takes root and cgroup v2";
    EXPECT_GE(cgroup->RunOutOfMemory(), 1u) << device;
    EXPECT_TRUE(vm.Replaced(device, before)) << device;
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
  }
  vm.Stop();
  vm.ExpectConsoleComplete();
}

void DieManyTimes(EnduringVm& vm) {
  const unsigned count = FromEnvironment("BULKHEAD_CHAOS_FAULTS", 40);
  const unsigned seed = FromEnvironment("BULKHEAD_CHAOS_SEED", 1);
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  Faults faults(vm.name(), seed, [&](const auto& holds) { return vm.command().WaitUntil(holds); });
  for (unsigned fault = 0; fault < count; ++fault) {
    if (faults.Random() % 8 == 0) {
      // With nobody to watch over them: the next fault may come before another broker does.
      const pid_t broker = ProcessOf(vm.name(), "broker");
      faults.KillBroker(broker);
      if (faults.Random() % 2 == 0) {
        EXPECT_TRUE(vm.Replaced("broker", broker)) << vm.said();
      }
      continue;
    }
    const std::string& device = vm.devices()[faults.Random() % vm.devices().size()];
    // Nobody may be there: the fault before this one was the same device's.
    const pid_t before = ProcessOf(vm.name(), device);
    if (before <= 0 || !faults.Do(device, before)) continue;
    // Now and then the next one follows at once.
    if (faults.Random() % 4 == 0) continue;
    ASSERT_TRUE(vm.Replaced(device, before)) << "fault " << fault << " of seed " << seed << ": " << device << "\n"
                                             << vm.said();
    ::usleep(faults.Random() % 30'000);
  }
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  vm.Stop();
  vm.ExpectConsoleComplete();
  std::printf("%s", faults.Table(vm.command().errors()).c_str());
}

// Those that hang are found soon.
const std::vector<std::string> kChaosWords{"--device-restarts", "1000000", "--exit-deadline", "2000"};

TEST(Recovery, ManyDeathsUnderLoad) {
  EnduringVm vm({.more = kChaosWords});
  DieManyTimes(vm);
}

TEST(Recovery, ManyDeathsUnderLoadOnAnImageWithTables) {
  EnduringVm vm({.more = kChaosWords, .disk = Disk::kQcow2});
  DieManyTimes(vm);
  const Finished checked = RunBulkhead({"img", "check", vm.top()});
  constexpr int kLeaks = 3;
  EXPECT_TRUE(checked.status == 0 || checked.status == kLeaks) << checked.output << checked.errors;
}

}  // namespace
}  // namespace bulkhead::test
