// SPDX-License-Identifier: Apache-2.0
#include "broker/wiring.h"

#include "ipc/ring.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

void ShareFiles(const std::vector<OwnFd>& fds, capnp::List<control::File>::Builder out) {
  for (unsigned i = 0; i < fds.size(); ++i) out.set(i, ShareFile(fds[i].get()));
}

}  // namespace

Wiring::Wiring(const DevicePlan& plan)
    : Wiring(
          plan, [&] { return OrThrow(MakeSealedMemory("exits-" + plan.name, ChannelBytes())); },
          [] { return OrThrow(MakeEventFd()); }) {}

Wiring::Wiring(const DevicePlan& plan, KeptFds& kept)
    : Wiring(
          plan, [&] { return kept.Take(); }, [&] { return kept.Take(); }) {}

// In the order of AddTo.
Wiring::Wiring(const DevicePlan& plan, const Make& memory, const Make& event) : plan_(plan) {
  if (plan.reached_by_guest()) {
    channel_ = memory();
    doorbell_ = event();
  }
  for (const PlannedFunction& planned : plan.functions) {
    Function& function = functions_.emplace_back();
    for (size_t i = 0; i < planned.queues; ++i) function.kicks.push_back(event());
    for (size_t i = 0; i < planned.vectors; ++i) function.interrupts.push_back(event());
  }
  for (const PlannedLine& planned : plan.lines) {
    Line& line = lines_.emplace_back();
    line.signal = event();
    if (planned.level) line.resample = event();
  }
}

void Wiring::AddTo(std::vector<int>& fds) const {
  const auto add = [&](const OwnFd& fd) {
    if (fd.valid()) fds.push_back(fd.get());
  };
  add(channel_);
  add(doorbell_);
  for (const Function& function : functions_) {
    for (const OwnFd& fd : function.kicks) add(fd);
    for (const OwnFd& fd : function.interrupts) add(fd);
  }
  for (const Line& line : lines_) {
    add(line.signal);
    add(line.resample);
  }
}

void Wiring::Describe(control::DeviceWiring::Builder out) const {
  out.setName(plan_.name);
  if (channel_.valid()) {
    auto channel = out.initChannel();
    channel.setMemory(ShareFile(channel_.get()));
    channel.setDoorbell(ShareFile(doorbell_.get()));
  }

  auto regions = out.initRegions(static_cast<unsigned>(plan_.regions.size()));
  for (unsigned i = 0; i < plan_.regions.size(); ++i) {
    const PlannedRegion& region = plan_.regions[i];
    regions[i].setSize(region.size_bytes);
    switch (region.kind) {
      case PlannedRegion::Kind::kPort:
        regions[i].setPort(region.number);
        break;
      case PlannedRegion::Kind::kConfig:
        regions[i].setConfig(static_cast<uint8_t>(region.number));
        break;
      case PlannedRegion::Kind::kBar0:
        regions[i].setBar0(static_cast<uint8_t>(region.number));
        break;
    }
  }

  auto functions = out.initFunctions(static_cast<unsigned>(functions_.size()));
  for (unsigned i = 0; i < functions_.size(); ++i) {
    functions[i].setSlot(plan_.functions[i].slot);
    functions[i].setBar0(plan_.functions[i].bar0_address);
    ShareFiles(functions_[i].kicks, functions[i].initKicks(static_cast<unsigned>(functions_[i].kicks.size())));
    ShareFiles(functions_[i].interrupts,
               functions[i].initInterrupts(static_cast<unsigned>(functions_[i].interrupts.size())));
  }

  auto lines = out.initLines(static_cast<unsigned>(lines_.size()));
  for (unsigned i = 0; i < lines_.size(); ++i) {
    lines[i].setGsi(plan_.lines[i].gsi);
    lines[i].setSignal(ShareFile(lines_[i].signal.get()));
    if (lines_[i].resample.valid()) lines[i].setResample(ShareFile(lines_[i].resample.get()));
  }
}

}  // namespace bulkhead::broker
