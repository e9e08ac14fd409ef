// SPDX-License-Identifier: Apache-2.0
#include "broker/wiring.h"

#include "ipc/ring.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

std::vector<OwnFd> MakeEventFds(size_t count) {
  std::vector<OwnFd> fds;
  for (size_t i = 0; i < count; ++i) fds.push_back(OrThrow(MakeEventFd()));
  return fds;
}

void ShareFiles(const std::vector<OwnFd>& fds, capnp::List<control::File>::Builder out) {
  for (unsigned i = 0; i < fds.size(); ++i) out.set(i, ShareFile(fds[i].get()));
}

}  // namespace

Wiring::Wiring(const DevicePlan& plan)
    : plan_(plan),
      channel_(plan.reached_by_guest() ? OrThrow(MakeSealedMemory("exits-" + plan.name, ChannelBytes())) : OwnFd()),
      doorbell_(plan.reached_by_guest() ? OrThrow(MakeEventFd()) : OwnFd()) {
  for (const PlannedFunction& function : plan.functions) {
    functions_.push_back({MakeEventFds(function.queues), MakeEventFds(function.vectors)});
  }
  for (const PlannedLine& line : plan.lines) {
    lines_.push_back({OrThrow(MakeEventFd()), line.level ? OrThrow(MakeEventFd()) : OwnFd()});
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
