// SPDX-License-Identifier: Apache-2.0
// A device's process ends, by itself or because it has to, and another one takes its place: what VmRun does for that.
// The journal (ipc/journal.h) is all that passes from one to the other; the broker does not look into it.
#include <cstdio>

#include "broker/plain_line.h"
#include "broker/vm_run.h"
#include "ipc/ring.h"

namespace bulkhead::broker {
namespace {

using Replacement = DevicePlan::Replacement;

// Far longer than it takes; less than half of a vCPU's patience, so that on a host which starves there is another try.
constexpr auto kTakeOverTime = 25 * kj::SECONDS;
// For a device to finish what it has in hand, before it is replaced all the same.
constexpr auto kPauseTime = 10 * kj::SECONDS;

double Milliseconds(int64_t ns) { return static_cast<double>(ns) / 1e6; }

}  // namespace

bool VmRun::CanReplace(const DeviceProcess& process) const {
  return running_ && settings_.device_restarts != 0 && process.plan->replacement == Replacement::kAlways;
}

// One that is of no more use, though it has not ended.
void VmRun::EndDevice(size_t index, const std::string& cause) {
  DeviceProcess& process = devices_[index];
  if (process.dead) return;
  if (!CanReplace(process)) return GiveUp(index, cause);
  if (process.cause.empty()) process.cause = cause;
  process.device.reset();
  process.child->Kill();
}

void VmRun::DeviceEnded(size_t index, const std::string& how) {
  NoLongerAwaited(index);
  DeviceProcess& process = devices_[index];
  process.device.reset();
  process.successor.reset();
  if (process.dead) return;
  if (process.upgrading) {
    if (process.end_awaited) {
      std::exchange(process.end_awaited, nullptr)->fulfill();
    } else if (process.successor_ready) {
      process.successor_ready->reject(Failure(how));
    }
    return;
  }
  std::string cause = process.cause.empty() ? how : std::exchange(process.cause, {});
  if (!CanReplace(process)) return GiveUp(index, cause);
  const int64_t died_at_ns = MonotonicNow();
  const auto delay_ns = process.restraint.Died(died_at_ns);
  if (!delay_ns) {
    return GiveUp(index, cause + ", after " + std::to_string(settings_.device_restarts) + " others within a minute");
  }
  std::fprintf(stderr, "bulkhead:%s broker: %s; another process takes its place\n", settings_.name.c_str(),
               cause.c_str());
  process.replacement =
      io_.provider->getTimer()
          .afterDelay(*delay_ns * kj::NANOSECONDS)
          .then([this, index] { return StartSuccessor(index, false); })
          .then(
              [this, index, died_at_ns] {
                std::fprintf(stderr, "bulkhead:%s broker: %s goes on after %.1f ms\n", settings_.name.c_str(),
                             devices_[index].plan->name.c_str(), Milliseconds(MonotonicNow() - died_at_ns));
              },
              [this, index](kj::Exception&& error) { SuccessorFailed(index, error); })
          .eagerlyEvaluate(nullptr);
}

// One that is gone is followed by the next, as its end says.
void VmRun::SuccessorFailed(size_t index, const kj::Exception& error) {
  // Also of a device that has been given up meanwhile.
  devices_[index].child->Kill();
  if (error.getType() == kj::Exception::Type::DISCONNECTED) return;
  GiveUp(index, devices_[index].plan->name + " cannot be replaced: " + PlainLine(ReasonOf(error)));
}

kj::Promise<void> VmRun::StartSuccessor(size_t index, bool anew) {
  return devices_[index]
      .plan->OpenSources()
      .then([this, index, anew] { return spawner_.Spawn(static_cast<uint32_t>(index), anew); })
      .then([this, index](Newborn born) {
        DeviceProcess& process = devices_[index];
        auto ready = kj::newPromiseAndFulfiller<void>();
        process.successor_ready = kj::mv(ready.fulfiller);
        ++process.generation;
        process.asked = false;
        process.cause.clear();
        born.reports_violations = process.child->reports_violations();
        process.child =
            std::make_unique<Child>(io_, std::move(born), settings_.name, process.plan->name, MakeHost(index));
        WatchDevice(index);
        return ready.promise.then([this, index] { return TakeOver(index); }).exclusiveJoin(WhenLate(index));
      });
}

// Fails when a successor that was just started should have taken over. The first that is late is ended, and with
// that followed by another.
kj::Promise<void> VmRun::WhenLate(size_t index) {
  return io_.provider->getTimer().afterDelay(kTakeOverTime).then([this, index]() -> kj::Promise<void> {
    DeviceProcess& process = devices_[index];
    constexpr char kLate[] = "it did not get ready in time";
    if (process.upgrading || std::exchange(process.was_late, true)) return Failure(kLate);
    process.cause = process.plan->name + "'s successor did not get ready in time";
    return KJ_EXCEPTION(DISCONNECTED, kLate);
  });
}

// Locked down, it reads what may be hostile, its predecessor's journal last, and is told what the user wished since the
// start.
kj::Promise<void> VmRun::TakeOver(size_t index) {
  DeviceProcess& process = devices_[index];
  // It may have said that it is ready, and died.
  if (!process.successor) return Failure("it has ended");
  control::Device::Client device = *process.successor;
  return device.loadRequest()
      .send()
      .ignoreResult()
      .then([device]() mutable { return device.takeOverRequest().send().ignoreResult(); })
      .then([this, index, device]() mutable {
        const DeviceProcess& process = devices_[index];
        kj::Vector<kj::Promise<void>> calls;
        for (const auto& [port, connection] : process.attached) {
          calls.add(SendAttach(device, port, connection.get()));
        }
        calls.add(TellWishes(process, device));
        return kj::joinPromises(calls.releaseAsArray());
      })
      .then([this, index]() -> kj::Promise<void> {
        DeviceProcess& process = devices_[index];
        // Given up meanwhile, as the runner told of it.
        if (process.dead || !process.successor) return Failure("it is not wanted any more");
        process.device = kj::mv(*process.successor);
        process.successor.reset();
        process.was_late = false;
        if (std::exchange(process.power_button, false)) {
          tasks_->add(process.device->pressPowerButtonRequest().send().ignoreResult());
        }
        if (!serving_) return kj::READY_NOW;
        return process.device->resumeRequest().send().ignoreResult();
      })
      .then([this] { changed_(); });
}

// What the user has said of the device since the start.
kj::Promise<void> VmRun::TellWishes(const DeviceProcess& process, control::Device::Client device) {
  kj::Vector<kj::Promise<void>> calls;
  if (process.throttle) {
    auto request = device.throttleRequest();
    request.setLimits(process.throttle->getRoot<control::DiskThrottle>().asReader());
    calls.add(request.send().ignoreResult());
  }
  if (process.link_up) {
    auto request = device.setLinkRequest();
    request.setUp(*process.link_up);
    calls.add(request.send().ignoreResult());
  }
  return kj::joinPromises(calls.releaseAsArray());
}

// The end of the device's process, now or soon.
kj::Promise<void> VmRun::EndForUpgrade(size_t index) {
  DeviceProcess& process = devices_[index];
  process.device.reset();
  process.child->Kill();
  if (process.child->ended()) return kj::READY_NOW;
  auto ended = kj::newPromiseAndFulfiller<void>();
  process.end_awaited = kj::mv(ended.fulfiller);
  return kj::mv(ended.promise);
}

// While it goes on, an end of the process is no reason for another one: what comes next is decided here.
kj::Promise<VmRun::Upgraded> VmRun::UpgradeOne(size_t index) {
  const int64_t begun_ns = MonotonicNow();
  const std::string name = devices_[index].plan->name;
  if (!devices_[index].device || devices_[index].upgrading) return Failure(name + " is being replaced already");
  devices_[index].upgrading = true;
  settled_ = false;
  changed_();
  auto pause = devices_[index].device->pauseRequest().send().ignoreResult();
  return pause.exclusiveJoin(io_.provider->getTimer().afterDelay(kPauseTime))
      .then([this, index] { return EndForUpgrade(index); })
      .then([this, index] { return StartSuccessor(index, true); })
      .then(
          [this, index]() -> kj::Promise<void> {
            spawner_.Keep(static_cast<uint32_t>(index));
            return kj::READY_NOW;
          },
          [this, index, name](kj::Exception&& error) -> kj::Promise<void> {
            const std::string reason = PlainLine(ReasonOf(error));
            return EndForUpgrade(index)
                .then([this, index] { return StartSuccessor(index, false); })
                .then([name, reason]() -> kj::Promise<void> {
                  return Failure(name + ": what is installed does not take over (" + reason +
                                 "); the program before goes on");
                });
          })
      .then(
          [this, index, name, begun_ns]() -> kj::Promise<Upgraded> {
            devices_[index].upgrading = false;
            Settled();
            return Upgraded{name, MonotonicNow() - begun_ns};
          },
          [this, index](kj::Exception&& error) -> kj::Promise<Upgraded> {
            devices_[index].upgrading = false;
            Settled();
            if (!devices_[index].device) SuccessorFailed(index, Failure(PlainLine(ReasonOf(error))));
            return kj::mv(error);
          });
}

kj::Promise<std::vector<VmRun::Upgraded>> VmRun::Upgrade(const std::string& device) {
  return kj::evalNow([&]() -> kj::Promise<std::vector<Upgraded>> {
    if (!running_) throw Failure("the VM is not running");
    std::vector<size_t> wanted;
    for (size_t i = 0; i < devices_.size(); ++i) {
      const DeviceProcess& process = devices_[i];
      if (!device.empty() && process.plan->name != device) continue;
      const bool can = process.device && process.plan->replacement != Replacement::kNever;
      if (can) wanted.push_back(i);
      if (!can && !device.empty()) throw Failure("'" + device + "' cannot be replaced while the VM runs");
    }
    if (wanted.empty() && !device.empty()) throw Failure("the VM has no device '" + PlainLine(device) + "'");
    return calls_.wrap(UpgradeAll(std::move(wanted), {}));
  });
}

// One after the other: so one device at a time keeps the guest waiting.
kj::Promise<std::vector<VmRun::Upgraded>> VmRun::UpgradeAll(std::vector<size_t> wanted, std::vector<Upgraded> done) {
  if (wanted.empty()) return kj::Promise<std::vector<Upgraded>>(std::move(done));
  const size_t index = wanted.front();
  wanted.erase(wanted.begin());
  return UpgradeOne(index).then([this, wanted = std::move(wanted), done = std::move(done)](Upgraded one) mutable {
    done.push_back(std::move(one));
    return UpgradeAll(std::move(wanted), std::move(done));
  });
}

}  // namespace bulkhead::broker
