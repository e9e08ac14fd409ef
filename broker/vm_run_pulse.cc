// SPDX-License-Identifier: Apache-2.0
// Whether the devices' processes still do anything: what VmRun does to find one that hangs though no vCPU waits for it,
// as none does for a queue. Each is asked now and then, and asks each of its threads. What it answers is hostile; one
// that lies about itself harms nobody else.
#include <algorithm>

#include "broker/vm_run.h"

namespace bulkhead::broker {
namespace {

// So many questions in a row that find the first still open. More than one: after this process itself, or the whole
// host, stood still, the first may have had no time.
constexpr unsigned kMostMissed = 2;
constexpr int64_t kShortestPeriodNs = 100'000'000;

}  // namespace

kj::Promise<void> VmRun::WatchPulses() {
  const int64_t period_ns = std::max(settings_.exit_deadline_ns, kShortestPeriodNs);
  return io_.provider->getTimer().afterDelay(period_ns * kj::NANOSECONDS).then([this] {
    for (size_t i = 0; i < devices_.size(); ++i) TakePulse(i);
    return WatchPulses();
  });
}

void VmRun::TakePulse(size_t index) {
  DeviceProcess& process = devices_[index];
  if (!process.device || process.upgrading || !serving_ || !settled_) {
    // It may have to wait for what it has in hand, and for long.
    process.pulses_missed = 0;
    return;
  }
  if (process.pulses_missed++ != 0) {
    if (process.pulses_missed > kMostMissed) Hangs(index);
    return;
  }
  const auto mine = [this, index, generation = process.generation] { return devices_[index].generation == generation; };
  tasks_->add(process.device->pulseRequest().send().then(
      [this, index, mine](auto response) {
        if (!mine()) return;
        devices_[index].pulses_missed = 0;
        if (response.getOpen() >= kMostMissed) Hangs(index);
      },
      [this, index, mine](kj::Exception&& error) {
        // A program that does not know the question. Of one that is gone its end tells.
        if (mine() && error.getType() == kj::Exception::Type::UNIMPLEMENTED) devices_[index].pulses_missed = 0;
      }));
}

// With no other to come it is left to go on, if it ever does.
void VmRun::Hangs(size_t index) {
  const DeviceProcess& process = devices_[index];
  if (!process.device || !CanReplace(process)) return;
  const int64_t silent_ms = kMostMissed * std::max(settings_.exit_deadline_ns, kShortestPeriodNs) / 1'000'000;
  EndDevice(index,
            process.plan->name + " hangs: it has given no sign of life for " + std::to_string(silent_ms) + " ms");
}

}  // namespace bulkhead::broker
