// SPDX-License-Identifier: Apache-2.0
#include "broker/cgroup_limits.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "ipc/platform.h"

namespace bulkhead::broker {
namespace {

constexpr uint64_t kGuest = 512 * platform::kMiB;

DevicePlan& AddDevice(VmSettings& settings, const std::string& name, bool uses_guest_memory) {
  settings.devices.push_back(std::make_unique<DevicePlan>());
  settings.devices.back()->name = name;
  settings.devices.back()->uses_guest_memory = uses_guest_memory;
  return *settings.devices.back();
}

VmSettings MakeVm() {
  VmSettings settings;
  settings.name = "web1";
  settings.memory_bytes = kGuest;
  settings.vcpu_count = 2;
  AddDevice(settings, "chipset", false);
  AddDevice(settings, "disk0", true);
  return settings;
}

std::string Find(const std::vector<CgroupLimit>& limits, const std::string& file) {
  for (const CgroupLimit& limit : limits) {
    if (limit.file == file) return limit.value;
  }
  return "";
}

uint64_t Number(const std::vector<CgroupLimit>& limits, const std::string& file) {
  return std::stoull(Find(limits, file));
}

std::string ErrorOf(const VmSettings& settings) {
  try {
    PlanCgroup(settings);
  } catch (const FatalError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CgroupPlan, HasALeafForEachProcess) {
  const CgroupPlan plan = PlanCgroup(MakeVm());
  ASSERT_EQ(plan.leaves.size(), 3U);
  EXPECT_EQ(plan.leaves[0].name, "vcpu-runner");
  EXPECT_EQ(plan.leaves[1].name, "chipset");
  EXPECT_EQ(plan.leaves[2].name, "disk0");
  EXPECT_FALSE(plan.asked_for);
}

TEST(CgroupPlan, AProcessThatMapsGuestMemoryMayBeChargedForAllOfIt) {
  const CgroupPlan plan = PlanCgroup(MakeVm());
  EXPECT_GT(Number(plan.leaves[0].limits, "memory.max"), kGuest);
  EXPECT_LT(Number(plan.leaves[1].limits, "memory.max"), kGuest);
  EXPECT_GT(Number(plan.leaves[2].limits, "memory.max"), kGuest);
}

// Guest memory is charged once, to whomever; everything else to the process that uses it.
TEST(CgroupPlan, TheVmMayUseGuestMemoryOnceAndWhatAllItsProcessesNeed) {
  const CgroupPlan plan = PlanCgroup(MakeVm());
  uint64_t own = Number(plan.leaves[1].limits, "memory.max");
  for (const int leaf : {0, 2}) own += Number(plan.leaves[leaf].limits, "memory.max") - kGuest;
  EXPECT_EQ(Number(plan.limits, "memory.max"), kGuest + own);
  EXPECT_EQ(Find(plan.limits, "memory.high"), "");
}

TEST(CgroupPlan, TasksAreThoseOfThePlanAndFewMore) {
  VmSettings settings = MakeVm();
  settings.vcpu_count = 8;
  settings.devices[1]->limits.threads = 40;
  const CgroupPlan plan = PlanCgroup(settings);
  EXPECT_GT(Number(plan.leaves[0].limits, "pids.max"), 8U);
  EXPECT_LT(Number(plan.leaves[0].limits, "pids.max"), 32U);
  EXPECT_GT(Number(plan.leaves[2].limits, "pids.max"), 40U);
  EXPECT_LT(Number(plan.leaves[2].limits, "pids.max"), 64U);
  uint64_t sum = 0;
  for (const CgroupLeaf& leaf : plan.leaves) sum += Number(leaf.limits, "pids.max");
  EXPECT_EQ(Number(plan.limits, "pids.max"), sum);
}

TEST(CgroupPlan, NoProcessorOrThroughputIsLimitedUnlessAsked) {
  const CgroupPlan plan = PlanCgroup(MakeVm());
  EXPECT_EQ(Find(plan.limits, "cpu.max"), "");
  EXPECT_EQ(Find(plan.limits, "io.max"), "");
}

TEST(CgroupPlan, TheUsersLimitsAreTheVms) {
  VmSettings settings = MakeVm();
  settings.limits = {.memory_bytes = kGuest / 2, .cpu_thousandths = 1500, .tasks = 100, .io_bytes_per_second = 0};
  const CgroupPlan plan = PlanCgroup(settings);
  EXPECT_TRUE(plan.asked_for);
  EXPECT_EQ(Number(plan.limits, "memory.max"), kGuest / 2);
  EXPECT_LT(Number(plan.limits, "memory.high"), kGuest / 2);
  EXPECT_EQ(Find(plan.limits, "cpu.max"), "150000 100000");
  EXPECT_EQ(Find(plan.limits, "pids.max"), "100");
}

TEST(CgroupPlan, FewerTasksThanTheVmHasThreadsAreRefused) {
  VmSettings settings = MakeVm();
  settings.limits.tasks = 4;
  EXPECT_NE(ErrorOf(settings).find("--limit pids"), std::string::npos) << ErrorOf(settings);
}

TEST(CgroupPlan, ThroughputOfAFileOnNoBlockDeviceCannotBeLimited) {
  VmSettings settings = MakeVm();
  settings.limits.io_bytes_per_second = 1 << 20;
  settings.devices[1]->files.push_back(OrThrow(MakeSealedMemory("image", 4096)));
  EXPECT_EQ(ErrorOf(settings), "no error");
  settings.devices[1]->limits.counts_io = true;
  EXPECT_NE(ErrorOf(settings).find("--limit io: disk0 is on no single block device"), std::string::npos)
      << ErrorOf(settings);
}

TEST(IoDevice, IsNoneForMemoryAndForWhatIsNoFile) {
  const OwnFd memory = OrThrow(MakeSealedMemory("image", 4096));
  EXPECT_EQ(FindIoDevice(memory.get()), std::nullopt);
  EXPECT_EQ(FindIoDevice(-1), std::nullopt);
}

}  // namespace
}  // namespace bulkhead::broker
