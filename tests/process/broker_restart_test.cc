// SPDX-License-Identifier: Apache-2.0
// The broker of a VM crashes, is killed or is upgraded: no vCPU and no device stops, and another one takes over.
#include <fcntl.h>
#include <unistd.h>

#include <set>

#include "tests/process/running_vm.h"

namespace bulkhead::test {
namespace {

TEST(BrokerRestart, EverythingEndsWhereNoneIsToTakeItsPlace) {
  RunningVm vm({"--device-restarts", "0"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.KillBroker();
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("broker"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(BrokerRestart, BrokersThatKeepDyingEndTheVm) {
  RunningVm vm({"--device-restarts", "1"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.LoseBroker();
  vm.KillBroker();
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("and the VM with it"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

// With each kind of process: under the tracer (scripts/check, policy) this is the test that shows what they need.
TEST(BrokerTakeOver, TheGuestGoesOnAndAnotherBrokerWatchesOver) {
  const TempDir dir;
  RunningVm vm({"--disk", dir.MakeImage("disk.img", 1 << 20), "--net", "user"}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const auto processes = [&] {
    auto all = ProcessesOf(vm.name());
    std::erase(all, vm.broker());
    return std::set<pid_t>(all.begin(), all.end());
  };
  const auto before = processes();
  for (int i = 0; i < 3; ++i) {
    vm.LoseBroker();
    EXPECT_TRUE(vm.GoesOn()) << vm.command().errors();
  }
  // Nobody else has been stopped or started.
  EXPECT_EQ(processes(), before) << vm.command().errors();
  const std::string state = RunBulkhead({"ps"}).output;
  EXPECT_NE(state.find("running"), std::string::npos) << state;
  for (const std::string device : {"rng", "disk0", "console", "chipset"}) {
    ASSERT_EQ(SignalTo(vm.name(), device, SIGKILL), 0);
    EXPECT_TRUE(vm.command().WaitUntil([&] {
      return vm.command().errors().find(device + " goes on after") != std::string::npos;
    })) << vm.command().errors();
  }
  EXPECT_TRUE(vm.GoesOn());
  // What it has started itself is known to the next one, too.
  vm.LoseBroker();
  EXPECT_TRUE(vm.GoesOn()) << vm.command().errors();
  EXPECT_EQ(RunBulkhead({"set-link", vm.name(), "net0", "off"}).status, 0);
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
  EXPECT_EQ(vm.command().errors().find("given up"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(BrokerRestart, InspectVerifiesAVmThatWasTakenOver) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root sees all that is verified";
  const TempDir dir;
  RunningVm vm({"--disk", dir.MakeImage("disk.img", 1 << 20), "--net", "user"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.LoseBroker();
  const Finished verified = RunBulkhead({"inspect", vm.name(), "--verify"});
  EXPECT_EQ(verified.status, 0) << verified.output << verified.errors;
}

TEST(BrokerRestart, UpgradeReplacesTheBroker) {
  RunningVm vm({}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const pid_t before = vm.broker();
  const std::string said = vm.command().errors();
  const Finished upgraded = RunBulkhead({"upgrade", vm.name(), "broker"});
  EXPECT_EQ(upgraded.status, 0) << upgraded.errors;
  EXPECT_NE(upgraded.output.find("replaced by process"), std::string::npos) << upgraded.output;
  EXPECT_NE(vm.broker(), before);
  EXPECT_TRUE(vm.GoesOn());
  EXPECT_EQ(vm.command().errors(), said);
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0);
  ExpectNothingLeft(vm.name());
}

TEST(BrokerRestart, PausedVmStaysPaused) {
  RunningVm vm({}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  ControlConnection(vm.name()).Pause();
  vm.LoseBroker();
  EXPECT_TRUE(vm.command().WaitForSilence());
  ControlConnection control(vm.name());
  EXPECT_EQ(control.vm().reportRequest().send().wait(control.wait()).getReport().getState(), "paused");
  control.vm().resumeRequest().send().wait(control.wait());
  EXPECT_TRUE(vm.GoesOn());
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0);
}

// With its launcher stopped, the VM has no broker for as long as the test likes.
TEST(BrokerRestart, WhatHappensWithoutABrokerIsMadeUpFor) {
  constexpr off_t kDiskBytes = 2 << 20;
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", kDiskBytes), words = dir.Path("words"), name = UniqueName();
  Command vm({"run", "--name", name, "--kernel", Payload("endure"), "--disk", image, "--console", "none",
              "--debug-console", "file=" + words});
  const auto says = [&](const char* word) {
    return Eventually([&] { return ReadFile(words).find(word) != std::string::npos; });
  };
  const auto lose_broker = [&] {
    const pid_t broker = BrokerOf(name);
    ASSERT_GT(broker, 0);
    vm.Signal(SIGSTOP);
    ASSERT_EQ(::kill(broker, SIGKILL), 0);
  };
  ASSERT_TRUE(says("enduring")) << vm.errors();
  lose_broker();
  ASSERT_EQ(SignalTo(name, "rng", SIGKILL), 0);
  vm.Signal(SIGCONT);
  EXPECT_TRUE(vm.WaitUntil([&] { return vm.errors().find("rng goes on after") != std::string::npos; })) << vm.errors();

  // The guest powers itself off.
  lose_broker();
  const OwnFd disk(::open(image.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::pwrite(disk.get(), "stop", 4, kDiskBytes - 512), 4);
  ASSERT_EQ(::fsync(disk.get()), 0);
  EXPECT_TRUE(says("PASS endure")) << ReadFile(words);
  vm.Signal(SIGCONT);
  EXPECT_EQ(vm.Wait(), 0) << vm.errors();
  ExpectNothingLeft(name);
}

TEST(BrokerRestart, TheRunnersEndWithoutABrokerEndsTheVm) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.command().Signal(SIGSTOP);
  vm.KillBroker();
  ASSERT_EQ(SignalTo(vm.name(), "vcpu-runner", SIGKILL), 0);
  vm.command().Signal(SIGCONT);
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("vcpu-runner was killed by signal 9"), std::string::npos)
      << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

// All of the VM's processes are its children.
TEST(BrokerRestart, DeathOfTheSpawnerEndsTheVm) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  ASSERT_EQ(SignalTo(vm.name(), "spawner", SIGKILL), 0);
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("so has the spawner"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(BrokerRestart, OneThatWasStoppedMeanwhileIsReplaced) {
  RunningVm vm({}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.command().Signal(SIGSTOP);
  vm.KillBroker();
  ASSERT_EQ(SignalTo(vm.name(), "rng", SIGSTOP), 0);
  vm.command().Signal(SIGCONT);
  EXPECT_TRUE(vm.command().WaitUntil([&] {
    return vm.command().errors().find("rng was stopped by a signal; another process") != std::string::npos;
  })) << vm.command().errors();
  EXPECT_TRUE(vm.GoesOn()) << vm.command().errors();
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
}

TEST(BrokerRestart, DeathOfTheLauncherStillEndsEverything) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.LoseBroker();
  ExpectLauncherTakesAllWithIt(vm);
}

TEST(BrokerRestart, DeathOfLauncherAndBrokerAtOnceEndsEverything) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.command().Signal(SIGSTOP);
  vm.KillBroker();
  ExpectLauncherTakesAllWithIt(vm);
}

}  // namespace
}  // namespace bulkhead::test
