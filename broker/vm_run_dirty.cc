// SPDX-License-Identifier: Apache-2.0
// The log of what is written to a VM's guest memory: what VmRun does for that. The runner has KVM log what the vCPUs
// write, device processes mark what they do while the switch in their log is on. It is on no longer than somebody wants
// it, whoever dies meanwhile.
#include <algorithm>
#include <utility>

#include "broker/vm_run.h"
#include "ipc/ring.h"

namespace bulkhead::broker {
namespace {

// For whoever had a log of the last broker to claim it; by far longer than it takes.
constexpr auto kClaimTime = 30 * kj::SECONDS;
// For those who are asked, on a host that is merely busy.
constexpr auto kAnswerTime = 20 * kj::SECONDS;

}  // namespace

std::vector<std::string> VmRun::Writers() const {
  std::vector<std::string> writers{"vcpu-runner"};
  for (const DeviceProcess& process : devices_) {
    if (process.plan->uses_guest_memory) writers.push_back(process.plan->name);
  }
  return writers;
}

kj::Promise<void> VmRun::BeginLog(uint64_t id) {
  return kj::evalNow([&]() -> kj::Promise<void> {
    if (!running_ || !runner_) throw Failure("the VM is not running");
    if (!dirty_logs_) throw Failure("its processes are of a version that takes no note of what it writes");
    if (write_log_ && (write_log_->id != id || write_log_->claimed))
      throw Failure("its writes are being logged already");
    if (!write_log_) {
      write_log_ = std::make_unique<WriteLog>();
      write_log_->id = id;
      dirty_logs_->Take();
      write_log_->since_ns = MonotonicNow();
      // Before anything is logged: so a broker that takes over knows that something may be.
      changed_();
    }
    write_log_->claimed = true;
    return calls_.wrap(SwitchLog(true).exclusiveJoin(NoAnswer()))
        .catch_([this, id](kj::Exception&& error) -> kj::Promise<void> {
          StopLog(id);
          return kj::mv(error);
        });
  });
}

kj::Promise<VmRun::Writes> VmRun::TakeLog(uint64_t id) {
  return kj::evalNow([&]() -> kj::Promise<Writes> {
    if (!runner_) throw Failure("the VM is not running");
    auto collected = runner_->collectWritesRequest().send().ignoreResult().exclusiveJoin(NoAnswer());
    return calls_.wrap(collected.then([this, id]() -> kj::Promise<Writes> {
      if (!write_log_ || write_log_->id != id) return Failure("its writes are not logged any more");
      const int64_t now_ns = MonotonicNow();
      Writes writes{dirty_logs_->writers(), dirty_logs_->Take(), now_ns - write_log_->since_ns};
      write_log_->since_ns = now_ns;
      changed_();
      return writes;
    }));
  });
}

kj::Promise<void> VmRun::NoAnswer() {
  return io_.provider->getTimer().afterDelay(kAnswerTime).then([]() -> kj::Promise<void> {
    return Failure("not all of its processes answer");
  });
}

void VmRun::StopLog(uint64_t id) {
  if (!write_log_ || write_log_->id != id) return;
  // Not from within the promise of its end.
  const auto ended = std::move(write_log_);
  if (tasks_) tasks_->add(SwitchLog(false).attach(kj::mv(ended->unclaimed)));
  changed_();
}

kj::Promise<void> VmRun::SwitchLog(bool on) {
  return kj::evalNow([&] {
    if (!on) {
      dirty_logs_->SwitchOff();
    } else if (auto switched = dirty_logs_->SwitchOn(); !switched.ok()) {
      throw Failure(switched.error().message);
    }
    kj::Vector<kj::Promise<void>> calls;
    if (runner_) {
      auto request = runner_->logWritesRequest();
      request.setOn(on);
      calls.add(request.send().ignoreResult());
    }
    for (DeviceProcess& process : devices_) {
      if (process.plan->kernel_writes && process.device) {
        calls.add(process.device->followLogRequest().send().ignoreResult());
      }
    }
    return kj::joinPromises(calls.releaseAsArray());
  });
}

void VmRun::WriteLogDown(record::VmRecord::Builder out) const {
  if (!write_log_) return;
  auto written = out.initWriteLog();
  written.setId(write_log_->id);
  written.setSinceNs(write_log_->since_ns);
}

// Another broker's log goes on, for its holder to claim.
void VmRun::KeepLog(record::VmRecord::Reader record) {
  if (!dirty_logs_) return;
  if (!record.hasWriteLog()) {
    if (dirty_logs_->on()) tasks_->add(SwitchLog(false));
    return;
  }
  const auto written = record.getWriteLog();
  write_log_ = std::make_unique<WriteLog>();
  write_log_->id = written.getId();
  write_log_->since_ns = std::clamp<int64_t>(written.getSinceNs(), 0, MonotonicNow());
  write_log_->unclaimed = io_.provider->getTimer()
                              .afterDelay(kClaimTime)
                              .then([this, id = write_log_->id] {
                                if (write_log_ && write_log_->id == id && !write_log_->claimed) StopLog(id);
                              })
                              .eagerlyEvaluate(nullptr);
}

}  // namespace bulkhead::broker
