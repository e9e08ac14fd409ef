// SPDX-License-Identifier: Apache-2.0
// Whether the devices' processes still do anything: what VmRun does to find one that hangs though no vCPU waits for it,
// as none does for a queue. Each is asked now and then, and asks its threads that serve queues, while the guest does
// anything and once more after that: an idle VM costs one look at the runner's CPU time. So one that hangs while
// nothing but the outside has anything for it is found when the guest does something again. What a process answers is
// hostile; one that lies about itself harms nobody else.
#include <time.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "broker/vm_run.h"

namespace bulkhead::broker {
namespace {

// So many times in a row it is time for another question while the one before is open. More than one: after this
// process itself, or the whole host, stood still, there may have been no time for the first.
constexpr unsigned kMostMissed = 2;

// What all threads of a process have used of processors so far, as clock_getcpuclockid(3) has it, which would take
// another system call; none that has ended.
std::optional<int64_t> CpuTimeOf(pid_t pid) {
  constexpr clockid_t kOfAllThreads = 2;  // CPUCLOCK_SCHED
  timespec used{};
  if (::clock_gettime(static_cast<clockid_t>(~static_cast<unsigned>(pid) << 3) | kOfAllThreads, &used) != 0) return {};
  return int64_t{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

int64_t PeriodOf(const VmSettings& settings) {
  constexpr int64_t kShortestNs = 100'000'000;
  return std::max(settings.exit_deadline_ns, kShortestNs);
}

}  // namespace

kj::Promise<void> VmRun::WatchPulses() {
  return io_.provider->getTimer().afterDelay(PeriodOf(settings_) * kj::NANOSECONDS).then([this] {
    const auto used_ns = CpuTimeOf(runner_process_->pid());
    const auto used_before_ns = std::exchange(runner_used_ns_, used_ns);
    // The first time this is not known yet, and nothing has been waiting for long.
    const bool idles = used_ns && (!used_before_ns || used_before_ns == used_ns);
    // Who waits may have been the last to do anything.
    const bool asks_nothing = std::exchange(guest_idled_, idles) && idles;
    for (size_t i = 0; i < devices_.size(); ++i) TakePulse(i, asks_nothing);
    return WatchPulses();
  });
}

void VmRun::TakePulse(size_t index, bool guest_idles) {
  DeviceProcess& process = devices_[index];
  if (!process.pulse.asking.valid()) return;
  const auto answer = process.pulse.TakeAnswer();
  const bool was_asked = std::exchange(process.asked, false);
  // While it is paused or replaced it may have to wait for what it has in hand, and for long. With no other to come it
  // is left to go on, if it ever does.
  if (!process.device || process.upgrading || !serving_ || !CanReplace(process)) return;
  if (was_asked && !answer) {
    process.asked = true;
    if (++process.periods_unanswered >= kMostMissed) EndHung(index);
    return;
  }
  process.periods_unanswered = 0;
  const uint32_t open = was_asked ? *answer : 0;
  if (open >= kMostMissed) return EndHung(index);
  if (guest_idles && open == 0) return;
  process.asked = process.pulse.Ask();
}

void VmRun::EndHung(size_t index) {
  const int64_t silent_ms = kMostMissed * PeriodOf(settings_) / 1'000'000;
  EndDevice(index, devices_[index].plan->name + " hangs: it has given no sign of life for " +
                       std::to_string(silent_ms) + " ms");
}

}  // namespace bulkhead::broker
