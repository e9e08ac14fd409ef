// SPDX-License-Identifier: Apache-2.0
// Files and values: Documentation/admin-guide/cgroup-v2.rst.
#include "broker/cgroup_limits.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "ipc/platform.h"

namespace bulkhead::broker {
namespace {

// KVM's page tables, with shadow paging 2% of guest memory (KVM_PERMILLE_MMU_PAGES), and what it keeps per page.
constexpr uint64_t kKvmShare = 16;
// Page tables of a mapping of guest memory (8 bytes a page), and the file's own index of its pages.
constexpr uint64_t kMappingShare = 64;
constexpr uint64_t kVcpuBytes = 4 * platform::kMiB;
// Main thread, mailbox and the like; KVM's own: PIT, recovery of huge pages.
constexpr uint32_t kRunnerThreads = 2;
constexpr uint32_t kRunnerKernelThreads = 4;
// Of what a process makes nothing is made after the start; this allows for what a library may do.
constexpr uint32_t kSpareThreads = 2;
constexpr uint64_t kCpuPeriodUs = 100'000;

CgroupLimit Limit(const char* file, uint64_t value, bool required = true) {
  return {file, std::to_string(value), required};
}

// Guest memory is charged to the process that touches a page first: a disk's, mostly, as it reads into pages that the
// guest has not written yet. So whoever maps it may be charged for all of it.
uint64_t GuestMemoryOf(const DevicePlan& plan, uint64_t guest_bytes) {
  return plan.uses_guest_memory ? guest_bytes : 0;
}

CgroupLeaf MakeLeaf(const std::string& name, uint64_t memory_bytes, uint32_t tasks) {
  return {name,
          {Limit("memory.max", memory_bytes), Limit("memory.swap.max", memory_bytes, false), Limit("pids.max", tasks)}};
}

std::vector<CgroupLimit> IoLimits(const VmSettings& settings) {
  const uint64_t rate = settings.limits.io_bytes_per_second;
  if (rate == 0) return {};
  std::set<std::string> devices;
  for (const auto& plan : settings.devices) {
    if (!plan->limits.counts_io) continue;
    for (const OwnFd& file : plan->files) {
      const auto device = FindIoDevice(file.get());
      if (!device) {
        throw FatalError("--limit io: " + plan->name +
                         " is on no single block device of this host (on tmpfs, btrfs or a network file system), so "
                         "its throughput cannot be limited");
      }
      devices.insert(*device);
    }
  }
  std::vector<CgroupLimit> limits;
  for (const std::string& device : devices) {
    const std::string number = std::to_string(rate);
    limits.push_back({"io.max", device + " rbps=" + number + " wbps=" + number, true});
  }
  return limits;
}

}  // namespace

CgroupPlan PlanCgroup(const VmSettings& settings) {
  const uint64_t guest = settings.memory_bytes;
  const uint64_t runner = PlannedLimits().memory_bytes + guest / kKvmShare + settings.vcpu_count * kVcpuBytes;
  const uint32_t runner_threads = settings.vcpu_count + kRunnerThreads + kSpareThreads;
  CgroupPlan plan{.vm = settings.name, .limits = {}, .leaves = {}, .asked_for = settings.limits.any()};
  plan.leaves.push_back(MakeLeaf("vcpu-runner", guest + runner, runner_threads + kRunnerKernelThreads));

  uint64_t memory = guest + runner;
  uint32_t tasks = runner_threads + kRunnerKernelThreads;
  uint32_t fewest_tasks = runner_threads;
  for (const auto& device : settings.devices) {
    const uint64_t mapped = GuestMemoryOf(*device, guest);
    const uint64_t own = device->limits.memory_bytes + mapped / kMappingShare;
    const uint32_t threads = device->limits.threads + kSpareThreads;
    plan.leaves.push_back(MakeLeaf(device->name, own + mapped, threads + device->limits.kernel_threads));
    memory += own;
    tasks += threads + device->limits.kernel_threads;
    fewest_tasks += threads + (device->limits.kernel_threads != 0 ? 1 : 0);
  }

  const VmLimits& wanted = settings.limits;
  if (wanted.tasks != 0 && wanted.tasks < fewest_tasks) {
    throw FatalError("--limit pids: the threads of this VM are " + std::to_string(fewest_tasks) + ", more than " +
                     std::to_string(wanted.tasks));
  }
  if (wanted.memory_bytes != 0) {
    memory = wanted.memory_bytes;
    // The guest may need more than that: slowed down and swapped out before it is killed.
    plan.limits.push_back(Limit("memory.high", memory - memory / 16));
  }
  plan.limits.push_back(Limit("memory.max", memory));
  plan.limits.push_back(Limit("memory.swap.max", std::max(memory, guest), false));
  // A VM without one of its processes is not worth keeping where memory is short; one out of its own leaf's memory is
  // a dead device.
  plan.limits.push_back(Limit("memory.oom.group", 1, false));
  plan.limits.push_back(Limit("pids.max", wanted.tasks != 0 ? wanted.tasks : tasks));
  if (wanted.cpu_thousandths != 0) {
    const uint64_t quota_us = wanted.cpu_thousandths * kCpuPeriodUs / 1000;
    plan.limits.push_back({"cpu.max", std::to_string(quota_us) + " " + std::to_string(kCpuPeriodUs), true});
  }
  for (CgroupLimit& limit : IoLimits(settings)) plan.limits.push_back(std::move(limit));
  return plan;
}

std::optional<std::string> FindIoDevice(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return std::nullopt;
  const dev_t device = S_ISBLK(info.st_mode) ? info.st_rdev : info.st_dev;
  if (major(device) == 0) return std::nullopt;
  const std::string name = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  const std::string path = "/sys/dev/block/" + name;
  // Only whole disks can be limited; beneath each lie its partitions.
  if (::access((path + "/partition").c_str(), F_OK) != 0) return name;
  std::ifstream disk(path + "/../dev");
  std::string number;
  if (!std::getline(disk, number)) return std::nullopt;
  return number;
}

}  // namespace bulkhead::broker
