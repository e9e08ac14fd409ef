// SPDX-License-Identifier: Apache-2.0
// How VMs end, and that nothing is left of them however they do.
#include "tests/process/running_vm.h"

namespace bulkhead::test {
namespace {

TEST(Lifecycle, ProcessesCarryTheNamesOfVmAndDevice) {
  const TempDir dir;
  RunningVm vm({"--disk", dir.MakeImage("a.img", 1 << 20), "--disk", dir.MakeImage("b.img", 1 << 20)});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const char* process : {"broker", "vcpu-runner", "chipset", "console", "disk0", "disk1", "rng"}) {
    EXPECT_GT(ProcessOf(vm.name(), process), 0) << process;
  }
  const pid_t runner = ProcessOf(vm.name(), "vcpu-runner");
  EXPECT_FALSE(ReadFile("/proc/" + std::to_string(runner) + "/task/" + std::to_string(runner) + "/comm").empty());
}

TEST(Lifecycle, PsListsTheVmAndKillEndsIt) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  EXPECT_NE(RunBulkhead({"ps"}).output.find(vm.name()), std::string::npos);
  EXPECT_NE(RunBulkhead({"inspect", vm.name()}).output.find("vcpu-runner"), std::string::npos);
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
  ExpectNothingLeft(vm.name());
  EXPECT_EQ(RunBulkhead({"ps"}).output.find(vm.name()), std::string::npos);
}

TEST(Lifecycle, StopPressesThePowerButton) {
  RunningVm vm({}, "button");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  EXPECT_EQ(RunBulkhead({"stop", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(Lifecycle, SigtermPressesThePowerButton) {
  for (const int number : {SIGTERM, SIGINT}) {
    RunningVm vm({}, "button");
    ASSERT_TRUE(vm.started()) << vm.command().errors();
    vm.command().Signal(number);
    EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
    ExpectNothingLeft(vm.name());
  }
}

TEST(Lifecycle, SecondSignalEndsAGuestThatDoesNotListen) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  vm.command().Signal(SIGTERM);
  ASSERT_TRUE(Eventually([&] { return RunBulkhead({"ps"}).output.find("stopping") != std::string::npos; }));
  vm.command().Signal(SIGTERM);
  EXPECT_GE(vm.command().Wait(), 0);
  ExpectNothingLeft(vm.name());
}

TEST(Lifecycle, DeathOfADeviceEndsTheVmWhereAskedAndNamesIt) {
  RunningVm vm({"--on-device-failure", "stop", "--device-restarts", "0"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  ASSERT_EQ(SignalTo(vm.name(), "rng", SIGKILL), 0);
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("rng"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(Lifecycle, DeathOfEitherHalfOfUserModeNetworkingCostsTheGuestThatNetwork) {
  RunningVm vm({"--net", "user", "--net", "user", "--device-restarts", "0"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const auto is_told = [&](const std::string& line) {
    return vm.command().WaitUntil([&] { return vm.command().errors().find(line) != std::string::npos; });
  };
  ASSERT_EQ(SignalTo(vm.name(), "usernet0", SIGKILL), 0);
  EXPECT_TRUE(is_told("device given up: usernet0 was killed by signal 9")) << vm.command().errors();
  // Nobody else reaches a usernet process.
  ASSERT_EQ(SignalTo(vm.name(), "net1", SIGKILL), 0);
  EXPECT_TRUE(is_told("device given up: net1 was killed by signal 9")) << vm.command().errors();
  EXPECT_TRUE(is_told("usernet1 is of no use without net1")) << vm.command().errors();
  EXPECT_TRUE(Eventually([&] { return ProcessOf(vm.name(), "usernet1") <= 0; }));
  EXPECT_GT(ProcessOf(vm.name(), "net0"), 0);
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(Lifecycle, DeathOfTheRunnerEndsTheVm) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  ASSERT_EQ(SignalTo(vm.name(), "vcpu-runner", SIGKILL), 0);
  EXPECT_EQ(vm.command().Wait(), 1);
  EXPECT_NE(vm.command().errors().find("vcpu-runner"), std::string::npos) << vm.command().errors();
  ExpectNothingLeft(vm.name());
}

TEST(Lifecycle, DeathOfTheLauncherEndsEverything) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const pid_t broker = vm.broker();
  ASSERT_GT(broker, 0);
  ExpectLauncherTakesAllWithIt(vm);
  EXPECT_TRUE(Eventually([&] { return !Alive(broker); }));
}

TEST(Lifecycle, NameInUseIsRefused) {
  RunningVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const Finished second = RunBulkhead({"run", "--name", vm.name(), "--kernel", Payload("hello"), "--console", "none"});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.errors.find(vm.name()), std::string::npos) << second.errors;
  EXPECT_FALSE(ProcessesOf(vm.name()).empty());
}

TEST(Lifecycle, ImageInUseIsRefused) {
  const TempDir dir;
  const std::string image = dir.MakeImage("disk.img", 1 << 20);
  RunningVm vm({"--disk", image});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const Finished second =
      RunBulkhead({"run", "--name", UniqueName(), "--kernel", Payload("hello"), "--console", "none", "--disk", image});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.errors.find(image), std::string::npos) << second.errors;
  EXPECT_NE(second.errors.find("use"), std::string::npos) << second.errors;
}

TEST(Lifecycle, PausedVmMakesNoProgressUntilResumed) {
  RunningVm vm({"-c", "2"}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  ControlConnection control(vm.name());
  control.vm().pauseRequest().send().wait(control.wait());
  EXPECT_TRUE(vm.command().WaitForSilence());
  const size_t paused_at = vm.command().output().size();
  EXPECT_EQ(control.vm().reportRequest().send().wait(control.wait()).getReport().getState(), "paused");
  control.vm().resumeRequest().send().wait(control.wait());
  EXPECT_TRUE(vm.command().WaitUntil([&] { return vm.command().output().size() > paused_at; }));
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0);
}

// Each in turn: the guest goes on, the broker says who it was.
TEST(Lifecycle, StoppedDeviceCostsOnlyItself) {
  const TempDir dir;
  RunningVm vm({"--disk", dir.MakeImage("disk.img", 1 << 20), "--console", "none"}, "ticking");
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string device : {"console", "disk0", "rng"}) {
    ASSERT_EQ(SignalTo(vm.name(), device, SIGSTOP), 0);
    EXPECT_TRUE(vm.command().WaitUntil(
        [&] { return vm.command().errors().find(device + " was stopped") != std::string::npos; }));
    const size_t then = vm.command().output().size();
    EXPECT_TRUE(vm.command().WaitUntil([&] { return vm.command().output().size() > then; }));
  }
  EXPECT_EQ(RunBulkhead({"kill", vm.name()}).status, 0);
  EXPECT_EQ(vm.command().Wait(), 0);
  ExpectNothingLeft(vm.name());
}

// A sandboxed child, as the kernel sees it.
TEST(Sandbox, ChildrenHaveNoCapabilitiesNoNewPrivilegesAndAFilter) {
  const TempDir dir;
  RunningVm vm({"--disk", dir.MakeImage("disk.img", 1 << 20)});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  auto children = ProcessesOf(vm.name());
  // The spawner has what it takes to start them; Inspect holds it against that.
  for (const char* other : {"broker", "spawner"}) std::erase(children, ProcessOf(vm.name(), other));
  ASSERT_GE(children.size(), 5u);
  for (const pid_t pid : children) {
    // Privileges belong to threads: each is looked at.
    for (const std::string& status : ThreadStatuses(pid)) {
      EXPECT_NE(status.find("NoNewPrivs:\t1"), std::string::npos) << status;
      EXPECT_NE(status.find("Seccomp:\t2"), std::string::npos) << status;
      for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
        EXPECT_NE(status.find(std::string(set) + ":\t0000000000000000"), std::string::npos) << set << status;
      }
    }
  }
}

TEST(Sandbox, ThreadsAreNamedAfterWhatTheyDo) {
  RunningVm vm({"-c", "2"});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  std::string runner, console;
  for (const std::string& status : ThreadStatuses(ProcessOf(vm.name(), "vcpu-runner"))) runner += status;
  for (const std::string& status : ThreadStatuses(ProcessOf(vm.name(), "console"))) console += status;
  EXPECT_NE(runner.find("Name:\tvcpu0"), std::string::npos);
  EXPECT_NE(runner.find("Name:\tvcpu1"), std::string::npos);
  EXPECT_NE(console.find("Name:\tdevice"), std::string::npos);
}

}  // namespace
}  // namespace bulkhead::test
