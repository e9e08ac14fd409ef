// SPDX-License-Identifier: Apache-2.0
#include "tests/process/device_process.h"

#include <poll.h>

#include "ipc/counted_output.h"
#include "ipc/journal.h"
#include "ipc/rpc.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

constexpr int kHangMs = 60'000;
constexpr uint32_t kSpinNs = 50'000;

}  // namespace

class DeviceProcess::Host final : public control::DeviceHost::Server {
 public:
  Host(DeviceProcess& process, bool successor) : process_(process), successor_(successor) {}
  kj::Promise<void> grants(GrantsContext context) override {
    process_.FillGrants(context.getResults().initGrants(), process_.report_violations_, successor_);
    return kj::READY_NOW;
  }
  kj::Promise<void> ready(ReadyContext context) override {
    return process_.child_->SetReady(context.getParams().getSandbox().getViolations()).then([this, context]() mutable {
      process_.device_ = context.getParams().getDevice();
      process_.ready_.fulfiller->fulfill();
    });
  }

 private:
  DeviceProcess& process_;
  const bool successor_;
};

DeviceProcess::DeviceProcess(kj::AsyncIoContext& io, const Options& options)
    : DeviceProcess(io, options, OrThrow(MakeSealedMemory("guest-test", kMemoryBytes))) {
  device_->resumeRequest().send().wait(io_.waitScope);
}

DeviceProcess::DeviceProcess(kj::AsyncIoContext& io, const Options& options, DeviceProcess& before)
    : DeviceProcess(io, options, OrThrow(DuplicateFd(before.memory_file_.get()))) {
  const auto saved = before.device_->saveRequest().send().wait(io_.waitScope);
  auto restore = device_->restoreRequest();
  restore.getState().set(saved.getState());
  restore.send().wait(io_.waitScope);
  device_->resumeRequest().send().wait(io_.waitScope);
}

DeviceProcess::DeviceProcess(kj::AsyncIoContext& io, const Options& options, OwnFd memory_file)
    : io_(io),
      executable_(options.executable),
      report_violations_(options.report_violations),
      memory_file_(std::move(memory_file)),
      ready_(kj::newPromiseAndFulfiller<void>()),
      death_(nullptr) {
  capnp::MallocMessageBuilder config;
  auto vm = config.initRoot<control::VmConfig>();
  vm.setVcpuCount(1);
  if (options.configure) options.configure(vm);
  broker::Planner planner(vm.asReader(), io_.waitScope);
  options.plan(planner);
  plans_ = planner.Take();
  plan_ = plans_.back().get();
  for (const auto& plan : plans_) {
    if (plan->name == options.plan_name) plan_ = plan.get();
  }
  if (!options.name.empty()) plan_->name = options.name;
  if (!options.settings_text.empty()) {
    plan_->settings = std::make_unique<capnp::MallocMessageBuilder>();
    plan_->settings->setRoot(capnp::Text::Reader(options.settings_text));
  }

  const MemoryRegion region{Gpa{0}, kMemoryBytes, 0};
  memory_ = OrThrow(GuestMemory::Map(memory_file_.get(), std::span(&region, 1)));
  dirty_log_file_ = OrThrow(DirtyLog::Make("dirty-test", memory_->end()));
  dirty_logs_.push_back(OrThrow(DirtyLog::Map(dirty_log_file_.get(), memory_->end())));
  const OwnFd own = OrThrow(DirtyLog::Make("dirty-test", memory_->end()));
  dirty_logs_.push_back(OrThrow(DirtyLog::Map(own.get(), memory_->end())));
  memory_->LogWrites(OrThrow(DirtyLog::Map(own.get(), memory_->end())));
  OrThrow(DirtyLog::TakePart());
  wiring_ = std::make_unique<broker::Wiring>(*plan_);
  size_t queues = 0;
  for (const auto& function : plan_->functions) queues += function.queues;
  journal_ = OrThrow(Journal::Make("journal-" + plan_->name, queues,
                                   plan_->journals_tables ? Journal::Tables::kKept : Journal::Tables::kNone));
  for (unsigned i = 0; i < plan_->outputs; ++i) {
    stages_.push_back(OrThrow(CountedOutput::MakeStage("output-" + plan_->name)));
  }
  TakeRunnersEnds(options);
  Start(false);
}

void DeviceProcess::Replace() {
  child_->Kill();
  AwaitDeath();
  ready_ = kj::newPromiseAndFulfiller<void>();
  Start(true);
  device_->takeOverRequest().send().wait(io_.waitScope);
  device_->resumeRequest().send().wait(io_.waitScope);
}

void DeviceProcess::Start(bool successor) {
  plan_->OpenSources().wait(io_.waitScope);
  const std::string executable = executable_.empty() ? BuildDir() + "/libexec/" + plan_->executable : executable_;
  child_ = std::make_unique<broker::Child>(
      io_, executable, UniqueName(), plan_->name, kj::heap<Host>(*this, successor),
      broker::Birthplace{.cgroup = {}, .uid = uids_.Take(), .keeps_network = plan_->keeps_network});
  death_ = child_->WhenDead().fork();
  auto died = death_.addBranch().then([](std::string how) { throw Failure(how); });
  ready_.promise.exclusiveJoin(kj::mv(died)).wait(io_.waitScope);
  device_->loadRequest().send().wait(io_.waitScope);
}

void DeviceProcess::FillGrants(control::DeviceGrants::Builder out, bool report_violations, bool successor) {
  wiring_->Describe(out.initWiring());
  if (plan_->uses_guest_memory) {
    auto memory = out.initMemory();
    memory.setFile(ShareFile(memory_file_.get()));
    memory.setLog(ShareFile(dirty_log_file_.get()));
    memory.initRegions(1)[0].setSize(kMemoryBytes);
  }
  const auto kept = static_cast<unsigned>(plan_->files.size());
  auto files = out.initFiles(kept + static_cast<unsigned>(plan_->given_away.size()));
  for (unsigned i = 0; i < files.size(); ++i) {
    files.set(i, i < kept ? ShareFile(plan_->files[i].get()) : MakeFile(std::move(plan_->given_away[i - kept])));
  }
  plan_->given_away.clear();
  if (plan_->settings) out.getSettings().set(plan_->settings->getRoot<capnp::AnyPointer>().asReader());
  if (plan_->packets) {
    auto packets = out.initPackets();
    packets.setMemory(ShareFile(plan_->packets->memory.get()));
    packets.setDoorbell(ShareFile(plan_->packets->doorbell.get()));
    packets.setPeer(ShareFile(plan_->packets->peer.get()));
  }
  out.setSpinNs(kSpinNs);
  out.setPulse(ShareFile(pulse_.answering.get()));
  out.setJournal(ShareFile(journal_.get()));
  out.setSuccessor(successor);
  auto stages = out.initStages(static_cast<unsigned>(stages_.size()));
  for (unsigned i = 0; i < stages.size(); ++i) stages.set(i, ShareFile(stages_[i].get()));
  out.initSandbox().setReportViolations(report_violations && child_->reports_violations());
}

void DeviceProcess::TakeRunnersEnds(const Options& options) {
  capnp::MallocMessageBuilder message;
  auto builder = message.initRoot<control::DeviceWiring>();
  wiring_->Describe(builder);
  const auto wiring = builder.asReader();
  // A process that the guest does not reach.
  if (!wiring.hasChannel()) return;
  raw_channel_ = OrThrow(MapChannel(TakeFile(wiring.getChannel().getMemory(), io_.waitScope).get()));
  doorbell_ = TakeFile(wiring.getChannel().getDoorbell(), io_.waitScope);
  channel_ = std::make_unique<runner::DeviceChannel>(
      plan_->name, raw_channel_, OrThrow(DuplicateFd(doorbell_.get())),
      runner::ChannelPatience{.deadline_ns = options.deadline_ns, .spin_ns = kSpinNs},
      runner::ChannelEvents{.failed = [](const std::string&) {}});
  for (auto function : wiring.getFunctions()) {
    for (OwnFd& kick : TakeFiles(function.getKicks(), io_.waitScope)) kicks_.push_back(std::move(kick));
    for (OwnFd& line : TakeFiles(function.getInterrupts(), io_.waitScope)) interrupts_.push_back(std::move(line));
  }
}

bool DeviceProcess::AwaitInterrupt(size_t vector) {
  pollfd wait{interrupts_.at(vector).get(), POLLIN, 0};
  if (::poll(&wait, 1, kHangMs) != 1) return false;
  DrainEventFd(wait.fd);
  return true;
}

}  // namespace bulkhead::test
