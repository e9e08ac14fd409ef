// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/runner.h"

#include "ipc/child.h"
#include "ipc/rpc.h"
#include "vcpu-runner/kvm/kvm_vm.h"

namespace bulkhead::runner {
Runner::Runner(control::RunnerGrants::Reader grants, BrokerLink& broker, Mailbox& mailbox, kj::WaitScope& wait)
    : broker_(broker), mailbox_(mailbox), memory_(MapGrantedMemory(grants.getMemory(), wait)) {
  machine_ = {.memory_bytes = memory_.size_bytes(), .vcpu_count = grants.getVcpuCount()};
  if (grants.hasDirtyLog()) {
    dirty_log_ = OrThrow(DirtyLog::Map(TakeFile(grants.getDirtyLog(), wait).get(), memory_.end()));
  }
  kernel_ = TakeFile(grants.getKernel(), wait);
  if (grants.hasInitrd()) initrd_ = TakeFile(grants.getInitrd(), wait);
  sources_ = {.kernel_fd = kernel_.get(),
              .kernel_name = grants.getKernelName().cStr(),
              .initrd_fd = initrd_.valid() ? std::optional(initrd_.get()) : std::nullopt,
              .initrd_name = grants.getInitrdName().cStr(),
              .command_line = grants.getCommandLine().cStr()};

  const OwnFd kvm = TakeFile(grants.getKvm(), wait);
  vm_ = OrThrow(CreateKvmVm(kvm.get()));
  OrThrow(vm_->AddMemory(memory_));
  router_ = std::make_unique<Router>(*vm_, machine_.memory_bytes);
  auto host = broker_.Host<control::RunnerHost>();
  for (uint32_t i = 0; i < grants.getDeviceCount(); ++i) {
    auto request = host.deviceRequest();
    request.setIndex(i);
    auto response = request.send().wait(wait);
    AddDevice(i, response.getWiring(), grants, wait);
  }

  InstallInterruptSignal();
  for (uint32_t i = 0; i < machine_.vcpu_count; ++i) {
    vcpus_.push_back(std::make_unique<VcpuThread>(i, OrThrow(vm_->CreateVcpu(i, machine_.vcpu_count)), *router_, gate_,
                                                  [this](const Exit& exit) { ReportStop(exit); }));
  }
  // Every thread is past its start-up calls before the filter closes.
  gate_.AwaitWaiting(machine_.vcpu_count);
}

void Runner::AddDevice(size_t index, control::DeviceWiring::Reader wiring, control::RunnerGrants::Reader grants,
                       kj::WaitScope& wait) {
  const auto channel = wiring.getChannel();
  ChannelMemory* memory = OrThrow(MapChannel(TakeFile(channel.getMemory(), wait).get()));
  devices_.push_back(std::make_unique<DeviceChannel>(
      wiring.getName().cStr(), memory, TakeFile(channel.getDoorbell(), wait),
      ChannelPatience{.deadline_ns = static_cast<int64_t>(grants.getExitDeadlineNs()),
                      .extra_ns = static_cast<int64_t>(grants.getPatienceNs()),
                      .spin_ns = grants.getSpinNs()},
      ChannelEvents{.failed = [this, index](const std::string& reason) { ReportDeviceFailure(index, reason); },
                    .late = [this, index] { ReportDeviceLate(index); }}));
  DeviceChannel& device = *devices_.back();

  std::vector<FunctionWiring> functions;
  for (auto function : wiring.getFunctions()) {
    functions.push_back({.slot = function.getSlot(),
                         .kicks = TakeFiles(function.getKicks(), wait),
                         .interrupts = TakeFiles(function.getInterrupts(), wait)});
  }
  const auto regions = wiring.getRegions();
  for (uint16_t number = 0; number < regions.size(); ++number) {
    const auto region = regions[number];
    switch (region.which()) {
      case control::RegionGrant::PORT:
        router_->AddPorts(region.getPort(), static_cast<uint16_t>(region.getSize()), device, number);
        break;
      case control::RegionGrant::CONFIG:
        functions.at(region.getConfig()).config_region = number;
        break;
      case control::RegionGrant::BAR0:
        functions.at(region.getBar0()).bar0_region = number;
        functions.at(region.getBar0()).bar0_size = region.getSize();
        break;
    }
  }
  for (FunctionWiring& function : functions) OrThrow(router_->AddFunction(std::move(function), device));

  for (auto line : wiring.getLines()) {
    OwnFd signal = TakeFile(line.getSignal(), wait);
    OwnFd resample = line.hasResample() ? TakeFile(line.getResample(), wait) : OwnFd();
    OrThrow(vm_->ConnectLine(line.getGsi(), signal.get(), resample.get()));
    lines_.push_back(std::move(signal));
    lines_.push_back(std::move(resample));
  }
}

Result<void> Runner::Load() {
  auto start = LoadGuest(memory_, machine_, sources_);
  if (!start.ok()) return start.error();
  kernel_.Close();
  initrd_.Close();
  return vcpus_.front()->vcpu().SetStartState(*start);
}

void Runner::Pause() {
  gate_.Close();
  for (const auto& vcpu : vcpus_) vcpu->vcpu().Interrupt();
  gate_.AwaitWaiting(static_cast<uint32_t>(vcpus_.size()));
}

void Runner::Resume() { gate_.Open(); }

void Runner::MarkDeviceDead(size_t index) {
  if (index < devices_.size()) devices_[index]->MarkDead();
}

Result<void> Runner::LogWrites(bool on) { return vm_->SetDirtyLogging(on); }

Result<void> Runner::CollectWrites() {
  if (!dirty_log_) return Error{EINVAL, "there is no dirty log"};
  const auto regions = memory_.mappings();
  for (size_t i = 0; i < regions.size(); ++i) {
    const auto taken = vm_->TakeDirtyPages(i);
    if (!taken.ok()) return taken.error();
    dirty_log_->Mark(regions[i].region.base.value / kGuestPageBytes, *taken);
  }
  return {};
}

// From a vCPU's thread. Said until a broker has heard it.
void Runner::Tell(std::function<kj::Promise<void>(control::RunnerHost::Client)> call) {
  mailbox_.Post([this, call = std::move(call)] {
    broker_.Tell([this, call] { return call(broker_.Host<control::RunnerHost>()); });
  });
}

void Runner::ReportStop(const Exit& exit) {
  const auto* failure = std::get_if<FailureExit>(&exit);
  Tell([line = failure != nullptr ? failure->line : std::string()](control::RunnerHost::Client host) {
    auto request = host.stoppedRequest();
    if (line.empty()) {
      request.initReason().setReset();
    } else {
      request.initReason().setFailure(line);
    }
    return request.send().ignoreResult();
  });
}

void Runner::ReportDeviceLate(size_t index) {
  Tell([index](control::RunnerHost::Client host) {
    auto request = host.deviceLateRequest();
    request.setDevice(static_cast<uint32_t>(index));
    return request.send().ignoreResult();
  });
}

void Runner::ReportDeviceFailure(size_t index, const std::string& reason) {
  Tell([index, reason](control::RunnerHost::Client host) {
    auto request = host.deviceFailedRequest();
    request.setDevice(static_cast<uint32_t>(index));
    request.setReason(reason);
    return request.send().ignoreResult();
  });
}

}  // namespace bulkhead::runner
