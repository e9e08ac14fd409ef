// SPDX-License-Identifier: Apache-2.0
// A broker takes over a VM that runs, from one that crashed or was upgraded: what VmRun does for that. The VM's
// processes have gone on meanwhile; each is asked, by its socket from the spawner, to turn to this broker.
#include <cstdio>

#include "broker/kept_fds.h"
#include "broker/plain_line.h"
#include "broker/vm_run.h"

namespace bulkhead::broker {
namespace {

// Far longer than it takes, also on a host that is merely busy; a process that does not answer for so long is of no
// more use.
constexpr auto kGoOnTime = 30 * kj::SECONDS;

}  // namespace

void VmRun::WriteDown(record::VmRecord::Builder out) const {
  out.setRunnerPid(runner_process_->pid());
  out.setRunning(running_);
  out.setSettled(settled_);
  out.setServing(serving_);
  WriteLogDown(out);
  auto devices = out.initDevices(static_cast<unsigned>(devices_.size()));
  for (unsigned i = 0; i < devices_.size(); ++i) {
    const DeviceProcess& process = devices_[i];
    auto device = devices[i];
    device.setName(process.plan->name);
    device.setPid(process.device ? process.child->pid() : 0);
    device.setGeneration(process.generation);
    device.setDead(process.dead);
    if (process.throttle) device.setThrottle(process.throttle->getRoot<control::DiskThrottle>().asReader());
    if (process.link_up) device.setLink(*process.link_up ? record::Device::Link::UP : record::Device::Link::DOWN);
    auto attached = device.initAttached(static_cast<unsigned>(process.attached.size()));
    unsigned at = 0;
    for (const auto& [port, connection] : process.attached) attached.set(at++, port);
  }
}

void VmRun::Fetch() {
  auto logs = spawner_.Fetch(Kept::kDirtyLogs, 0, 0).wait(io_.waitScope);
  // Of a version that kept none, or of other devices.
  if (logs.size() != Writers().size()) return;
  KeptFds kept(std::move(logs));
  dirty_logs_.emplace(settings_.memory_bytes, Writers(), kept);
}

void VmRun::Adopt(record::VmRecord::Reader record, kj::Promise<void> enough) {
  const auto devices = record.getDevices();
  bool same = devices.size() == devices_.size();
  for (unsigned i = 0; same && i < devices_.size(); ++i) same = devices[i].getName() == devices_[i].plan->name.c_str();
  if (!same) throw FatalError("this VM has other devices than the last broker had of it");
  running_ = record.getRunning();
  serving_ = record.getServing();
  // All of them before the first is asked: it may answer while the others are not yet.
  for (size_t number = 0; number < process_count(); ++number) awaited_.insert(number);
  for (unsigned i = 0; i < devices_.size(); ++i) AdoptDevice(i, devices[i]);
  // What it has to tell is of devices.
  AdoptRunner(record.getRunnerPid());
  Supervise();
  auto late = io_.provider->getTimer().afterDelay(kGoOnTime);
  auto waited = all_ready_.promise.exclusiveJoin(kj::mv(late)).then([] { return true; });
  auto ends = enough.then([] { return false; });
  if (waited.exclusiveJoin(kj::mv(ends)).wait(io_.waitScope)) EndThoseThatDoNotGoOn();
}

void VmRun::AdoptRunner(pid_t pid) {
  const auto number = static_cast<uint32_t>(devices_.size());
  runner_process_ = std::make_unique<Child>(io_, spawner_.Adopt(number).wait(io_.waitScope), settings_.name,
                                            "vcpu-runner", MakeRunnerHost(Grants::kGiven));
  if (runner_process_->pid() != pid) runner_process_->Kill();
}

// One that did not serve yet when the last broker wrote it down is another's successor, half-way: it is not worth the
// rest.
void VmRun::AdoptDevice(size_t index, record::Device::Reader record) {
  DeviceProcess& process = devices_[index];
  DevicePlan& plan = *process.plan;
  KeptFds kept(spawner_.Fetch(Kept::kDevice, index, 0).wait(io_.waitScope));
  process.wiring = std::make_unique<Wiring>(plan, kept);
  if (plan.replacement != DevicePlan::Replacement::kNever) process.journal = kept.Take();
  for (unsigned i = 0; i < plan.outputs; ++i) process.stages.push_back(kept.Take());
  if (plan.packets) {
    for (OwnFd* fd : {&plan.packets->memory, &plan.packets->doorbell, &plan.packets->peer}) *fd = kept.Take();
  }
  if (!kept.empty()) {
    for (OwnFd* fd : {&process.pulse.asking, &process.pulse.answering}) *fd = kept.Take();
  }
  for (const uint8_t port : record.getAttached()) {
    KeptFds connection(spawner_.Fetch(Kept::kAttached, index, port).wait(io_.waitScope));
    process.attached[port] = connection.Take();
  }
  if (record.hasThrottle()) {
    process.throttle = std::make_unique<capnp::MallocMessageBuilder>();
    process.throttle->setRoot(record.getThrottle());
  }
  if (record.getLink() != record::Device::Link::AS_PLANNED) {
    process.link_up = record.getLink() == record::Device::Link::UP;
  }
  process.generation = record.getGeneration();
  process.dead = record.getDead();
  Newborn born = spawner_.Adopt(static_cast<uint32_t>(index)).wait(io_.waitScope);
  born.was_ready = born.process.pid == record.getPid();
  process.child =
      std::make_unique<Child>(io_, std::move(born), settings_.name, plan.name, MakeHost(index, Grants::kGiven));
  if (process.dead || process.child->pid() != record.getPid()) {
    process.child->Kill();
    NoLongerAwaited(index);
  }
}

void VmRun::NoLongerAwaited(size_t number) {
  if (awaited_.erase(number) != 0 && awaited_.empty()) all_ready_.fulfiller->fulfill();
}

void VmRun::DeviceGoesOn(size_t index, control::Device::Client device) {
  devices_[index].device = kj::mv(device);
  NoLongerAwaited(index);
}

void VmRun::RunnerGoesOn(control::Runner::Client runner) {
  runner_ = kj::mv(runner);
  NoLongerAwaited(devices_.size());
}

void VmRun::EndThoseThatDoNotGoOn() {
  for (const size_t number : std::exchange(awaited_, {})) {
    if (number < devices_.size()) {
      EndDevice(number, devices_[number].plan->name + " does not answer this broker");
    } else {
      End({control::ExitReport::Kind::FAILURE, "vcpu-runner does not answer this broker"});
    }
  }
}

void VmRun::GoOn(record::VmRecord::Reader record) {
  if (record.hasEnd()) {
    return End({record.getEnd().getKind(), PlainLine(record.getEnd().getDetail().cStr())});
  }
  // What a call may have brought that never came through.
  for (size_t i = 0; i < devices_.size(); ++i) {
    DeviceProcess& process = devices_[i];
    if (process.dead && runner_ && i < RunnersDevices()) TellRunnerDead(i);
    if (process.device) tasks_->add(TellWishes(process, *process.device));
  }
  KeepLog(record);
  if (record.getSettled()) return;
  // To how it was before the call that was under way, which has failed for its caller.
  const bool runs = running_ && record.getState() != "paused";
  tasks_->add(Pause().then([this, runs]() -> kj::Promise<void> {
    if (!runs) return kj::READY_NOW;
    return Resume();
  }));
}

}  // namespace bulkhead::broker
