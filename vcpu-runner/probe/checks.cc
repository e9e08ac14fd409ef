// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/probe/checks.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <functional>
#include <memory>
#include <thread>

#include "vcpu-runner/kvm/kvm_vm.h"
#include "vcpu-runner/probe/guest_code.h"
#include "vcpu-runner/probe/probe_guest.h"

namespace bulkhead::probe {
namespace {

using Status = control::ProbeReport::Status;

constexpr const char* kNoHardware =
    "this processor has no hardware virtualization that KVM can use, so stock kernels cannot run here, only small test "
    "guests; use a host with VT-x or AMD-V (in a cloud: an instance type with nested virtualization or bare metal), or "
    "run "
    "inside scripts/kvm-host";
// The same loop at CPL 0 and CPL 3: interpreted code is a thousand times slower, real code as fast.
constexpr double kInterpretedRatio = 20;

CheckResult Ok(std::string name, std::string detail) { return {std::move(name), Status::OK, std::move(detail)}; }
CheckResult Failed(std::string name, std::string detail) {
  return {std::move(name), Status::FAILED, std::move(detail)};
}
CheckResult Limited(std::string name, std::string detail) {
  return {std::move(name), Status::LIMITED, std::move(detail)};
}

std::string Rate(double per_second) {
  return std::to_string(static_cast<int64_t>(per_second / 1e6)) + " million instructions a second";
}

double InstructionsPerSecond(const Outcome& outcome) {
  return 2.0 * kLoopCount / (static_cast<double>(outcome.elapsed_ns + 1) / 1e9);
}

CheckResult CheckCpl0(int kvm_fd) {
  const std::string name = "guest code at CPL 0";
  ProbeGuest guest(kvm_fd, LoopAtCpl0());
  const Outcome outcome = guest.RunUntil(0, kDonePort);
  if (!outcome.done) return Failed(name, outcome.failure);
  ProbeGuest user_guest(kvm_fd, LoopAtCpl3());
  const Outcome user_outcome = user_guest.RunUntil(0, kDonePort);
  if (user_outcome.done && outcome.elapsed_ns > kInterpretedRatio * static_cast<double>(user_outcome.elapsed_ns)) {
    return Limited(name, Rate(InstructionsPerSecond(outcome)) + ": interpreted; " + kNoHardware);
  }
  return Ok(name, "runs natively");
}

CheckResult CheckCpl3(int kvm_fd) {
  const std::string name = "guest code at CPL 3";
  ProbeGuest guest(kvm_fd, LoopAtCpl3());
  const Outcome outcome = guest.RunUntil(0, kDonePort);
  if (!outcome.done) return Failed(name, outcome.failure);
  return Ok(name, "runs natively");
}

// Instructions that kernels use and interpreters lack.
CheckResult CheckInstruction(int kvm_fd, const char* mnemonic, std::span<const std::byte> code) {
  const std::string name = std::string("instruction ") + mnemonic;
  ProbeGuest guest(kvm_fd, code);
  const Outcome outcome = guest.RunUntil(0, kDonePort);
  if (outcome.done) return Ok(name, "works at CPL 0");
  return Limited(name, "KVM cannot run it at CPL 0: stock kernels stop there");
}

CheckResult CheckSmp(int kvm_fd) {
  const std::string name = "several vCPUs (INIT, SIPI)";
  // The boot processor halts for good, on a thread that ends with the process: so the guest must outlive this scope.
  const auto guest = std::make_shared<ProbeGuest>(kvm_fd, StartProcessor(), 2);
  OrThrow(guest->memory().Write(Gpa{kApCode}, StartedProcessor()));
  std::thread([guest] { (void)guest->RunUntil(0, kDonePort); }).detach();
  const Outcome outcome = guest->RunUntil(1, kApPort);
  if (!outcome.done) return Failed(name, outcome.failure);
  return Ok(name, "a second vCPU started");
}

CheckResult CheckIrqfd(int kvm_fd) {
  const std::string name = "interrupts from eventfds (irqfd, MSI)";
  constexpr uint64_t kMessageAddress = 0xFEE0'0000;  // to APIC id 0, fixed
  ProbeGuest guest(kvm_fd, AwaitInterrupt());
  const OwnFd event = OrThrow(MakeEventFd());
  const uint32_t gsi = OrThrow(guest.vm().ConnectMessage(event.get()));
  OrThrow(guest.vm().SetMessageRoute(gsi, kMessageAddress, kTestVector));
  const Outcome waiting = guest.RunUntil(0, kApPort);
  if (!waiting.done) return Failed(name, waiting.failure);
  SignalEventFd(event.get());
  const Outcome outcome = guest.RunUntil(0, kDonePort);
  if (!outcome.done) return Failed(name, outcome.failure);
  return Ok(name, "an interrupt arrived");
}

CheckResult CheckDirtyLog(int kvm_fd) {
  const std::string name = "dirty page log";
  ProbeGuest guest(kvm_fd, DirtyOnePage());
  OrThrow(guest.vm().SetDirtyLogging(true));
  const Outcome outcome = guest.RunUntil(0, kDonePort);
  if (!outcome.done) return Failed(name, outcome.failure);
  const auto pages = OrThrow(guest.vm().TakeDirtyPages(0));
  constexpr uint64_t kPage = kDirtiedAddress / 4096;
  if ((pages[kPage / 64] >> kPage % 64 & 1) == 0) return Failed(name, "a written page was not logged");
  return Ok(name, "written pages are logged");
}

CheckResult CheckVcpuLimit(int kvm_fd) {
  const int recommended = ::ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS);
  const int most = ::ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
  return Ok("vCPUs per VM", std::to_string(recommended) + " recommended, " + std::to_string(most) + " possible");
}

}  // namespace

std::vector<CheckResult> RunChecks(int kvm_fd) {
  struct Step {
    const char* name;
    std::function<CheckResult()> run;
  };
  const Step steps[] = {
      {"guest code at CPL 0", [&] { return CheckCpl0(kvm_fd); }},
      {"guest code at CPL 3", [&] { return CheckCpl3(kvm_fd); }},
      {"instruction cmpxchg16b", [&] { return CheckInstruction(kvm_fd, "cmpxchg16b", Cmpxchg16b()); }},
      {"instruction xsave", [&] { return CheckInstruction(kvm_fd, "xsave", Xsave()); }},
      {"instruction int3", [&] { return CheckInstruction(kvm_fd, "int3", Breakpoint()); }},
      {"interrupts from eventfds (irqfd, MSI)", [&] { return CheckIrqfd(kvm_fd); }},
      {"dirty page log", [&] { return CheckDirtyLog(kvm_fd); }},
      {"vCPUs per VM", [&] { return CheckVcpuLimit(kvm_fd); }},
      {"several vCPUs (INIT, SIPI)", [&] { return CheckSmp(kvm_fd); }},
  };
  runner::InstallInterruptSignal();
  std::vector<CheckResult> results;
  for (const Step& step : steps) {
    try {
      results.push_back(step.run());
    } catch (const FatalError& error) {
      results.push_back(Failed(step.name, error.what()));
    }
  }
  return results;
}

bool StockKernelsRun(const std::vector<CheckResult>& results) {
  for (const CheckResult& result : results) {
    if (result.status != Status::OK) return false;
  }
  return true;
}

}  // namespace bulkhead::probe
