// SPDX-License-Identifier: Apache-2.0
#include "broker/vm_settings.h"

#include <algorithm>

#include "ipc/platform.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMinMemory = 16 * platform::kMiB;
constexpr uint64_t kMaxMemory = 4096 * platform::kGiB;
constexpr size_t kMaxNameBytes = 48;
constexpr uint64_t kMinLimit = 64 * platform::kMiB;
constexpr uint32_t kMinCpuThousandths = 10;
constexpr uint64_t kMinIoBytes = 65536;
// Long enough that a host which is merely busy never gives a guest a wrong value.
constexpr int64_t kDefaultExitDeadlineNs = 5'000'000'000;

// The name becomes a file name and part of process titles.
void CheckName(const std::string& name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  const bool ok = !name.empty() && name.size() <= kMaxNameBytes && name[0] != '.' && name[0] != '-' &&
                  std::all_of(name.begin(), name.end(), plain);
  if (!ok) throw FatalError("VM name: use 1 to 48 letters, digits, '.', '_' and '-', starting with a letter or digit");
}

// What the kernel would refuse, or what would stop every guest.
VmLimits TakeLimits(control::VmLimits::Reader config) {
  const VmLimits limits{.memory_bytes = config.getMemoryBytes(),
                        .cpu_thousandths = config.getCpuThousandths(),
                        .tasks = config.getTasks(),
                        .io_bytes_per_second = config.getIoBytesPerSecond()};
  if (limits.memory_bytes != 0 && (limits.memory_bytes < kMinLimit || limits.memory_bytes > 2 * kMaxMemory)) {
    throw FatalError("--limit memory: use 64 MiB to 8 TiB");
  }
  if (limits.cpu_thousandths != 0 && limits.cpu_thousandths < kMinCpuThousandths) {
    throw FatalError("--limit cpu: use at least 1% of a processor");
  }
  if (limits.io_bytes_per_second != 0 && limits.io_bytes_per_second < kMinIoBytes) {
    throw FatalError("--limit io: use at least 64 KiB a second");
  }
  return limits;
}

UidRange TakeUids(uint32_t first, uint32_t count) {
  // 0 is root, the last number is none, and both are easily written by mistake.
  if (first == 0 || uint64_t{first} + count > UINT32_MAX) throw FatalError("--uids: use ids from 1 to 4294967294");
  return {first, count};
}

OwnFd TakeOptional(control::File::Client file, bool present, kj::WaitScope& wait) {
  return present ? TakeFile(kj::mv(file), wait) : OwnFd();
}

}  // namespace

VmSettings TakeSettings(control::VmConfig::Reader config, kj::WaitScope& wait) {
  VmSettings settings;
  settings.name = config.getName().cStr();
  CheckName(settings.name);
  settings.memory_bytes = config.getMemoryBytes();
  if (settings.memory_bytes < kMinMemory || settings.memory_bytes > kMaxMemory ||
      settings.memory_bytes % kPageBytes != 0) {
    throw FatalError("memory size: use 16 MiB to 4 TiB, in whole pages of 4 KiB");
  }
  settings.vcpu_count = config.getVcpuCount();
  if (settings.vcpu_count < 1 || settings.vcpu_count > platform::kMaxVcpus) {
    throw FatalError("number of vCPUs: use 1 to " + std::to_string(platform::kMaxVcpus));
  }
  if (!config.hasKernel()) throw FatalError("no kernel: give one with --kernel FILE");
  settings.kernel = TakeFile(config.getKernel(), wait);
  settings.kernel_name = config.getKernelName().cStr();
  settings.initrd = TakeOptional(config.getInitrd(), config.hasInitrd(), wait);
  settings.initrd_name = config.getInitrdName().cStr();
  settings.command_line = config.getCommandLine().cStr();
  settings.keep_on_device_failure = config.getKeepOnDeviceFailure();
  settings.exit_deadline_ns =
      config.getExitDeadlineMs() != 0 ? int64_t{config.getExitDeadlineMs()} * 1'000'000 : kDefaultExitDeadlineNs;
  settings.device_restarts = config.getDeviceRestarts();
  settings.runtime_dir = config.getRuntimeDir().cStr();
  settings.limits = TakeLimits(config.getLimits());
  if (config.getUidCount() != 0) settings.uids = TakeUids(config.getFirstUid(), config.getUidCount());
  settings.require_full_sandbox = config.getRequireFullSandbox();
  settings.devices = PlanDevices(config, wait);
  return settings;
}

}  // namespace bulkhead::broker
