// SPDX-License-Identifier: Apache-2.0
#include "broker/vm_run.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "broker/plain_line.h"
#include "ipc/counted_output.h"
#include "ipc/journal.h"
#include "ipc/platform.h"

namespace bulkhead::broker {

using ExitKind = control::ExitReport::Kind;

namespace {

// How long an exit's two sides may spin for each other before they sleep.
constexpr uint32_t kExitSpinNs = 50'000;
constexpr auto kQuiesceTime = 5 * kj::SECONDS;
// For another process to take the place of one that died: a host that is merely busy costs the guest no device.
constexpr uint64_t kPatienceNs = 60'000'000'000;
// Less than the patience of who asks the broker.
constexpr auto kInquiryTime = 1 * kj::SECONDS;

Result<OwnFd> MakeJournal(const DevicePlan& plan) {
  size_t queues = 0;
  for (const PlannedFunction& function : plan.functions) queues += function.queues;
  return Journal::Make("journal-" + plan.name, queues,
                       plan.journals_tables ? Journal::Tables::kKept : Journal::Tables::kNone);
}

}  // namespace

class VmRun::MachineControlServer final : public control::MachineControl::Server {
 public:
  explicit MachineControlServer(Revocable<VmRun> run) : run_(std::move(run)) {}
  kj::Promise<void> powerOff(PowerOffContext) override {
    run_->End({ExitKind::POWER_OFF, ""});
    return kj::READY_NOW;
  }
  kj::Promise<void> reset(ResetContext) override {
    run_->End({ExitKind::RESET, ""});
    return kj::READY_NOW;
  }

 private:
  Revocable<VmRun> run_;
};

class VmRun::DeviceHostServer final : public control::DeviceHost::Server {
 public:
  // Of the process that is the `generation`-th in its place.
  DeviceHostServer(Revocable<VmRun> run, size_t index, unsigned generation, Grants grants)
      : run_(std::move(run)),
        index_(index),
        generation_(generation),
        granted_(grants == Grants::kGiven),
        said_ready_(granted_),
        goes_on_(!granted_) {}
  kj::Promise<void> grants(GrantsContext context) override {
    // Each answer costs this process descriptors.
    if (std::exchange(granted_, true)) return Failure("already granted");
    run_->FillDeviceGrants(index_, context.getResults().initGrants());
    return kj::READY_NOW;
  }
  kj::Promise<void> ready(ReadyContext context) override {
    DeviceProcess& process = run_->devices_[index_];
    if (std::exchange(said_ready_, true) || process.dead || process.generation != generation_) {
      return Failure("already ready");
    }
    return run_->TakeReport(*process.child, context.getParams().getSandbox()).then([this, context]() mutable {
      run_->DeviceReady(index_, context.getParams().getDevice());
    });
  }
  kj::Promise<void> goOn(GoOnContext context) override {
    const DeviceProcess& process = run_->devices_[index_];
    if (std::exchange(goes_on_, true) || process.dead || process.generation != generation_)
      return Failure("it need not");
    run_->DeviceGoesOn(index_, context.getParams().getDevice());
    return kj::READY_NOW;
  }
  kj::Promise<void> machine(MachineContext context) override {
    if (!run_->devices_[index_].plan->controls_machine) return Failure("not granted");
    context.getResults().setMachine(kj::heap<MachineControlServer>(run_));
    return kj::READY_NOW;
  }

 private:
  Revocable<VmRun> run_;
  const size_t index_;
  const unsigned generation_;
  bool granted_;
  bool said_ready_;
  bool goes_on_;
};

class VmRun::RunnerHostServer final : public control::RunnerHost::Server {
 public:
  RunnerHostServer(Revocable<VmRun> run, Grants grants)
      : run_(std::move(run)), granted_(grants == Grants::kGiven), said_ready_(granted_), goes_on_(!granted_) {}
  kj::Promise<void> grants(GrantsContext context) override {
    if (std::exchange(granted_, true)) return Failure("already granted");
    run_->FillRunnerGrants(context.getResults().initGrants());
    return kj::READY_NOW;
  }
  kj::Promise<void> device(DeviceContext context) override {
    const uint32_t index = context.getParams().getIndex();
    if (index >= run_->RunnersDevices() || !told_.insert(index).second) return Failure("no such device");
    run_->devices_[index].wiring->Describe(context.getResults().initWiring());
    return kj::READY_NOW;
  }
  kj::Promise<void> ready(ReadyContext context) override {
    if (std::exchange(said_ready_, true)) return Failure("already ready");
    auto reported = run_->TakeReport(*run_->runner_process_, context.getParams().getSandbox());
    return reported.then([this, context]() mutable {
      run_->runner_ = context.getParams().getRunner();
      if (--run_->not_ready_ == 0) run_->all_ready_.fulfiller->fulfill();
    });
  }
  kj::Promise<void> goOn(GoOnContext context) override {
    if (std::exchange(goes_on_, true)) return Failure("it need not");
    run_->RunnerGoesOn(context.getParams().getRunner());
    return kj::READY_NOW;
  }
  kj::Promise<void> stopped(StoppedContext context) override {
    const auto reason = context.getParams().getReason();
    if (reason.isReset()) {
      run_->End({ExitKind::RESET, "the guest shut its processor down (triple fault)"});
    } else {
      run_->End({ExitKind::FAILURE, PlainLine(reason.getFailure().cStr())});
    }
    return kj::READY_NOW;
  }
  kj::Promise<void> deviceFailed(DeviceFailedContext context) override {
    const auto params = context.getParams();
    if (params.getDevice() >= run_->RunnersDevices()) return Failure("no such device");
    const std::string& name = run_->devices_[params.getDevice()].plan->name;
    run_->GiveUp(params.getDevice(), name + " " + PlainLine(params.getReason().cStr()));
    return kj::READY_NOW;
  }
  kj::Promise<void> deviceLate(DeviceLateContext context) override {
    const uint32_t index = context.getParams().getDevice();
    if (index >= run_->RunnersDevices()) return Failure("no such device");
    const DeviceProcess& process = run_->devices_[index];
    // One that is being replaced is late for that reason.
    if (!process.device) return kj::READY_NOW;
    run_->EndDevice(index, process.plan->name + " did not answer the guest within " +
                               std::to_string(run_->settings_.exit_deadline_ns / 1'000'000) + " ms");
    return kj::READY_NOW;
  }

 private:
  Revocable<VmRun> run_;
  bool granted_;
  bool said_ready_;
  bool goes_on_;
  std::set<uint32_t> told_;  // devices
};

VmRun::VmRun(kj::AsyncIoContext& io, const VmSettings& settings, const OwnFd& memory, Spawner& spawner,
             std::function<void()> changed)
    : io_(io),
      spawner_(spawner),
      settings_(settings),
      memory_(memory),
      changed_(std::move(changed)),
      all_ready_(kj::newPromiseAndFulfiller<void>()),
      all_loaded_(kj::newPromiseAndFulfiller<void>()),
      end_(kj::newPromiseAndFulfiller<VmEnd>()),
      ended_(end_.promise.fork()) {
  tasks_.emplace(task_errors_);
  for (const auto& plan : settings.devices) {
    DeviceProcess& process = devices_.emplace_back();
    process.plan = plan.get();
    process.restraint = Restraint(settings.device_restarts);
    if (plan->has_link) process.inquiry = std::make_unique<NetInquiry>(io.provider->getTimer(), kInquiryTime);
  }
}

void VmRun::Start(const std::string& helpers, const OwnFd& kvm, const PlaceFor& place_for) {
  kvm_ = &kvm;
  const auto enroll = [&](const std::string& executable, const std::string& name, bool keeps_network) {
    Birthplace place = place_for(name);
    place.keeps_network = keeps_network;
    spawner_.Enroll(helpers + "/" + executable, ChildTitle(settings_.name, name), place);
  };
  for (const DeviceProcess& process : devices_) {
    enroll(process.plan->executable, process.plan->name, process.plan->keeps_network);
  }
  enroll("bulkhead-vcpu-runner", "vcpu-runner", false);
  spawner_.Seal();
  for (DeviceProcess& process : devices_) {
    const DevicePlan& plan = *process.plan;
    process.wiring = std::make_unique<Wiring>(plan);
    process.pulse = PulseLine::Make();
    if (plan.replacement != DevicePlan::Replacement::kNever) process.journal = OrThrow(MakeJournal(plan));
    for (unsigned i = 0; i < plan.outputs; ++i) {
      process.stages.push_back(OrThrow(CountedOutput::MakeStage("output-" + plan.name)));
    }
  }
  dirty_logs_.emplace(settings_.memory_bytes, Writers());
  std::vector<int> logs;
  dirty_logs_->AddTo(logs);
  not_ready_ = process_count();
  const auto start = [&](size_t number, const std::string& name, capnp::Capability::Client host) {
    Newborn born = spawner_.Spawn(static_cast<uint32_t>(number), false).wait(io_.waitScope);
    born.reports_violations = CanWatchViolations(born.process.pidfd);
    return std::make_unique<Child>(io_, std::move(born), settings_.name, name, kj::mv(host));
  };
  runner_process_ = start(devices_.size(), "vcpu-runner", MakeRunnerHost(Grants::kDue));
  for (size_t i = 0; i < devices_.size(); ++i) {
    devices_[i].plan->OpenSources().wait(io_.waitScope);
    devices_[i].child = start(i, devices_[i].plan->name, MakeHost(i));
  }
  for (size_t i = 0; i < devices_.size(); ++i) tasks_->add(KeepDevice(i));
  tasks_->add(spawner_.Store(Kept::kDirtyLogs, 0, 0, std::move(logs)));
  Supervise();
}

// In the order in which AdoptDevice takes them.
kj::Promise<void> VmRun::KeepDevice(size_t index) {
  const DeviceProcess& process = devices_[index];
  std::vector<int> fds;
  process.wiring->AddTo(fds);
  if (process.journal.valid()) fds.push_back(process.journal.get());
  for (const OwnFd& stage : process.stages) fds.push_back(stage.get());
  if (const auto& packets = process.plan->packets) {
    for (const OwnFd* fd : {&packets->memory, &packets->doorbell, &packets->peer}) fds.push_back(fd->get());
  }
  if (process.pulse.asking.valid()) {
    for (const OwnFd* fd : {&process.pulse.asking, &process.pulse.answering}) fds.push_back(fd->get());
  }
  return spawner_.Store(Kept::kDevice, index, 0, std::move(fds));
}

VmRun::~VmRun() { tasks_.reset(); }

void VmRun::Supervise() {
  tasks_->add(runner_process_->WhenDead().then([this](std::string how) {
    runner_.reset();
    End({ExitKind::FAILURE, how});
    NoLongerAwaited(devices_.size());
  }));
  for (size_t i = 0; i < devices_.size(); ++i) WatchDevice(i);
  tasks_->add(WatchStops());
  tasks_->add(WatchPulses());
}

void VmRun::WatchDevice(size_t index) {
  tasks_->add(devices_[index].child->WhenDead().then([this, index](std::string how) { DeviceEnded(index, how); }));
}

void VmRun::DeviceReady(size_t index, control::Device::Client device) {
  DeviceProcess& process = devices_[index];
  if (process.generation != 0) {
    process.successor = kj::mv(device);
    process.successor_ready->fulfill();
    return;
  }
  process.device = kj::mv(device);
  if (--not_ready_ == 0) all_ready_.fulfiller->fulfill();
}

// A stopped device process may never go on, and no guest can tell: so it is as good as dead.
kj::Promise<void> VmRun::WatchStops() {
  return spawner_.NextStopped().then([this](uint32_t index) {
    if (index < devices_.size()) EndDevice(index, devices_[index].plan->name + " was stopped by a signal");
    return WatchStops();
  });
}

void VmRun::End(VmEnd end) {
  if (end_.fulfiller->isWaiting()) end_.fulfiller->fulfill(kj::mv(end));
}

void VmRun::GiveUp(size_t index, const std::string& how) {
  DeviceProcess& process = devices_[index];
  if (process.dead) return;
  process.dead = true;
  KJ_DEFER(changed_());
  process.device.reset();
  process.successor.reset();
  if (!running_ || !settings_.keep_on_device_failure) {
    End({ExitKind::DEVICE_FAILURE, how});
    return;
  }
  std::fprintf(stderr, "bulkhead:%s broker: device given up: %s\n", settings_.name.c_str(), how.c_str());
  process.child->Kill();
  TellPartner(*process.plan);
  if (runner_ && index < RunnersDevices()) TellRunnerDead(index);
}

void VmRun::TellRunnerDead(size_t index) {
  auto request = runner_->markDeviceDeadRequest();
  request.setDevice(static_cast<uint32_t>(index));
  tasks_->add(request.send().ignoreResult());
}

// A net process goes on with its link down; its outside is of no use without it.
void VmRun::TellPartner(const DevicePlan& dead) {
  for (size_t i = 0; i < devices_.size(); ++i) {
    DeviceProcess& other = devices_[i];
    if (other.plan->name == dead.outside_of && other.device) {
      tasks_->add(other.device->loseOutsideRequest().send().ignoreResult());
    }
    if (other.plan->outside_of == dead.name) GiveUp(i, other.plan->name + " is of no use without " + dead.name);
  }
}

size_t VmRun::RunnersDevices() const {
  return static_cast<size_t>(
      std::ranges::count_if(devices_, [](const DeviceProcess& process) { return process.plan->reached_by_guest(); }));
}

void VmRun::Prepare() {
  auto failed = ended_.addBranch().then([](VmEnd end) { throw Failure(end.detail); }).fork();
  all_ready_.promise.exclusiveJoin(failed.addBranch()).wait(io_.waitScope);
  // It may have said that it is ready, and died.
  if (!runner_) throw Failure("vcpu-runner ended");
  Load();
  all_loaded_.promise.exclusiveJoin(failed.addBranch()).wait(io_.waitScope);
}

// The runner its kernel, each device what may be hostile of its files: all behind their walls, and side by side.
void VmRun::Load() {
  not_loaded_ = process_count();
  LoadWith(runner_->loadRequest().send().ignoreResult(), ExitKind::FAILURE);
  for (DeviceProcess& process : devices_) {
    if (process.device) LoadWith(process.device->loadRequest().send().ignoreResult(), ExitKind::DEVICE_FAILURE);
  }
}

void VmRun::LoadWith(kj::Promise<void> call, ExitKind kind) {
  tasks_->add(call.then(
      [this] {
        if (--not_loaded_ == 0) all_loaded_.fulfiller->fulfill();
      },
      [this, kind](kj::Exception&& error) {
        // One that is gone is reported by its end, which says why.
        if (error.getType() != kj::Exception::Type::DISCONNECTED) End({kind, PlainLine(ReasonOf(error))});
      }));
}

kj::Promise<void> VmRun::ResumeDevices() {
  serving_ = true;
  changed_();
  kj::Vector<kj::Promise<void>> calls;
  for (DeviceProcess& process : devices_) {
    if (process.device) calls.add(process.device->resumeRequest().send().ignoreResult());
  }
  return kj::joinPromises(calls.releaseAsArray());
}

kj::Promise<void> VmRun::QuiesceDevices() {
  serving_ = false;
  changed_();
  kj::Vector<kj::Promise<void>> calls;
  for (DeviceProcess& process : devices_) {
    if (process.device) {
      calls.add(process.device->pauseRequest().send().ignoreResult().catch_([](kj::Exception&&) {}));
    }
  }
  return kj::joinPromises(calls.releaseAsArray());
}

void VmRun::Finish(const VmEnd& end) {
  running_ = false;
  runner_process_->Kill();
  if (end.kind != ExitKind::KILLED) {
    auto time_is_up = io_.provider->getTimer().afterDelay(kQuiesceTime);
    QuiesceDevices().exclusiveJoin(kj::mv(time_is_up)).wait(io_.waitScope);
  }
  // Until they have ended they hold what they were given.
  kj::Vector<kj::Promise<void>> ends;
  ends.add(runner_process_->WhenDead().ignoreResult());
  for (DeviceProcess& process : devices_) {
    process.child->Kill();
    ends.add(process.child->WhenDead().ignoreResult());
  }
  kj::joinPromises(ends.releaseAsArray()).wait(io_.waitScope);
}

void VmRun::PressPowerButton() {
  for (DeviceProcess& process : devices_) {
    if (!process.plan->takes_power_button || process.dead) continue;
    if (process.device) {
      tasks_->add(process.device->pressPowerButtonRequest().send().ignoreResult());
    } else {
      process.power_button = true;
    }
  }
}

void VmRun::Go() { tasks_->add(Resume()); }

kj::Promise<void> VmRun::Pause() {
  if (!runner_) return Failure("the VM is not running");
  settled_ = false;
  changed_();
  return calls_.wrap(
      runner_->pauseRequest().send().ignoreResult().then([this] { return QuiesceDevices(); }).then([this] {
        Settled();
      }));
}

kj::Promise<void> VmRun::Resume() {
  running_ = true;
  settled_ = false;
  return calls_.wrap(ResumeDevices()
                         .then([this]() -> kj::Promise<void> {
                           if (!runner_) return Failure("the VM is not running");
                           return runner_->resumeRequest().send().ignoreResult();
                         })
                         .then([this] { Settled(); }));
}

void VmRun::Settled() {
  settled_ = true;
  changed_();
}

void VmRun::Attach(size_t device, uint8_t port, OwnFd connection) {
  DeviceProcess& process = devices_[device];
  if (process.dead) return;
  const int fd = connection.get();
  process.attached[port] = std::move(connection);
  if (process.device) tasks_->add(SendAttach(*process.device, port, fd));
  OwnFd kept = OrThrow(DuplicateFd(fd));
  auto stored = spawner_.Store(Kept::kAttached, device, port, {kept.get()});
  tasks_->add(stored.attach(kj::heap(std::move(kept))).then([this] { changed_(); }));
}

kj::Promise<void> VmRun::SendAttach(control::Device::Client& device, uint8_t port, int connection) {
  auto request = device.attachRequest();
  request.setPort(port);
  request.setInput(ShareFile(connection));
  request.setOutput(ShareFile(connection));
  return request.send().ignoreResult();
}

// The device of a kind that the VM's user named; throws a Failure that says which there are.
VmRun::DeviceProcess& VmRun::Named(const std::string& name, bool DevicePlan::*is_one, const char* what) {
  std::string known;
  for (DeviceProcess& process : devices_) {
    if (!(*process.plan.*is_one)) continue;
    known += (known.empty() ? "" : ", ") + process.plan->name;
    if (process.plan->name != name) continue;
    if (!process.device) throw Failure("'" + name + "' is not running");
    return process;
  }
  throw Failure("the VM has no " + std::string(what) + " '" + PlainLine(name) +
                "' of which that can be asked; it has " + (known.empty() ? "none" : known));
}

kj::Promise<void> VmRun::Throttle(const std::string& device, control::DiskThrottle::Reader limits) {
  return kj::evalNow([&] {
    DeviceProcess& process = Named(device, &DevicePlan::takes_throttle, "disk or network interface");
    auto request = process.device->throttleRequest();
    request.setLimits(limits);
    process.throttle = std::make_unique<capnp::MallocMessageBuilder>();
    process.throttle->setRoot(limits);
    changed_();
    return calls_.wrap(request.send().ignoreResult());
  });
}

kj::Promise<void> VmRun::SetLink(const std::string& interface, bool up) {
  return kj::evalNow([&] {
    DeviceProcess& process = Named(interface, &DevicePlan::has_link, "network interface");
    auto request = process.device->setLinkRequest();
    request.setUp(up);
    process.link_up = up;
    changed_();
    return calls_.wrap(request.send().then([interface, up](auto response) {
      if (!up || response.getLink() == control::LinkState::UP) return;
      throw Failure("the link of '" + interface + "' stays down: its outside is gone");
    }));
  });
}

kj::Promise<kj::Array<VmRun::Interface>> VmRun::AskInterfaces() {
  kj::Vector<kj::Promise<Interface>> answers;
  for (DeviceProcess& process : devices_) {
    if (!process.inquiry) continue;
    kj::Promise<NetInquiry::Answer> answer = NetInquiry::Answer();
    if (process.device) answer = process.inquiry->Ask(*process.device);
    answers.add(answer.then([name = process.plan->name](NetInquiry::Answer figures) {
      return Interface{name, figures};
    }));
  }
  return calls_.wrap(kj::joinPromises(answers.releaseAsArray()));
}

capnp::Capability::Client VmRun::MakeHost(size_t index, Grants grants) {
  return kj::heap<DeviceHostServer>(self_.Get(), index, devices_[index].generation, grants);
}

capnp::Capability::Client VmRun::MakeRunnerHost(Grants grants) {
  return kj::heap<RunnerHostServer>(self_.Get(), grants);
}

void VmRun::FillMemory(control::MemoryGrant::Builder out, int dirty_log) const {
  const auto ram = platform::RamRegions(settings_.memory_bytes);
  out.setFile(ShareFile(memory_.get()));
  if (dirty_log >= 0) out.setLog(ShareFile(dirty_log));
  auto regions = out.initRegions(static_cast<unsigned>(ram.size()));
  for (unsigned i = 0; i < ram.size(); ++i) {
    regions[i].setBase(ram[i].base.value);
    regions[i].setSize(ram[i].size_bytes);
    regions[i].setFileOffset(ram[i].file_offset);
  }
}

namespace {

void FillFiles(DevicePlan& plan, control::DeviceGrants::Builder out) {
  const auto kept = static_cast<unsigned>(plan.files.size()), given = static_cast<unsigned>(plan.given_away.size());
  auto files = out.initFiles(kept + given);
  for (unsigned i = 0; i < kept; ++i) files.set(i, ShareFile(plan.files[i].get()));
  for (unsigned i = 0; i < given; ++i) files.set(kept + i, MakeFile(std::move(plan.given_away[i])));
  plan.given_away.clear();
}

}  // namespace

void VmRun::FillDeviceGrants(size_t index, control::DeviceGrants::Builder out) {
  const DeviceProcess& process = devices_[index];
  DevicePlan& plan = *process.plan;
  process.wiring->Describe(out.initWiring());
  if (plan.uses_guest_memory) FillMemory(out.initMemory(), dirty_logs_ ? dirty_logs_->FileOf(plan.name) : -1);
  FillFiles(plan, out);
  if (plan.settings) out.getSettings().set(plan.settings->getRoot<capnp::AnyPointer>().asReader());
  out.setControlsMachine(plan.controls_machine);
  out.setSpinNs(kExitSpinNs);
  if (plan.packets) {
    auto packets = out.initPackets();
    packets.setMemory(ShareFile(plan.packets->memory.get()));
    packets.setDoorbell(ShareFile(plan.packets->doorbell.get()));
    packets.setPeer(ShareFile(plan.packets->peer.get()));
  }
  auto stages = out.initStages(static_cast<unsigned>(process.stages.size()));
  for (unsigned i = 0; i < stages.size(); ++i) stages.set(i, ShareFile(process.stages[i].get()));
  if (process.pulse.answering.valid()) out.setPulse(ShareFile(process.pulse.answering.get()));
  out.initSandbox().setReportViolations(process.child->reports_violations());
  if (!process.journal.valid()) return;
  out.setJournal(ShareFile(process.journal.get()));
  out.setSuccessor(process.generation != 0);
}

void VmRun::FillRunnerGrants(control::RunnerGrants::Builder out) const {
  out.setVmName(settings_.name);
  out.setKvm(ShareFile(kvm_->get()));
  FillMemory(out.initMemory(), -1);
  out.setDirtyLog(ShareFile(dirty_logs_->FileOf("vcpu-runner")));
  out.setVcpuCount(settings_.vcpu_count);
  out.setKernel(ShareFile(settings_.kernel.get()));
  out.setKernelName(settings_.kernel_name);
  if (settings_.initrd.valid()) out.setInitrd(ShareFile(settings_.initrd.get()));
  out.setInitrdName(settings_.initrd_name);
  out.setCommandLine(settings_.command_line);
  out.setDeviceCount(static_cast<uint32_t>(RunnersDevices()));
  out.setExitDeadlineNs(static_cast<uint64_t>(settings_.exit_deadline_ns));
  out.initSandbox().setReportViolations(runner_process_->reports_violations());
  out.setSpinNs(kExitSpinNs);
  if (settings_.device_restarts != 0) out.setPatienceNs(kPatienceNs);
}

kj::Promise<void> VmRun::TakeReport(Child& child, control::SandboxReport::Reader report) {
  has_landlock_ = has_landlock_ && report.getHasLandlock();
  return child.SetReady(report.getViolations());
}

std::vector<std::string> VmRun::MissingWalls() const {
  std::vector<std::string> missing;
  if (!has_landlock_)
    missing.push_back("no Landlock (this kernel has none, or it is not in its list of security modules)");
  if (!runner_process_->reports_violations()) {
    missing.push_back("no reports of forbidden system calls (this kernel or its settings forbid pidfd_getfd)");
  }
  return missing;
}

void VmRun::Describe(capnp::List<control::ProcessReport>::Builder out) const {
  out[0].setName(runner_process_->name());
  out[0].setPid(runner_process_->pid());
  for (unsigned i = 0; i < devices_.size(); ++i) {
    out[i + 1].setName(devices_[i].plan->name);
    out[i + 1].setPid(devices_[i].device ? devices_[i].child->pid() : 0);
    out[i + 1].setFiles(static_cast<uint16_t>(devices_[i].plan->files.size()));
    uint16_t queues = 0;
    for (const PlannedFunction& function : devices_[i].plan->functions) queues += function.queues;
    out[i + 1].setQueues(queues);
  }
}

}  // namespace bulkhead::broker
