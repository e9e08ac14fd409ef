// SPDX-License-Identifier: Apache-2.0
#include "broker/device_plan.h"

#include <algorithm>

#include "ipc/platform.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

constexpr uint64_t kConfigSpaceBytes = 4096;

}  // namespace

// What a start that failed before left is too old: it may have been another process's.
kj::Promise<void> DevicePlan::OpenSources() {
  given_away.clear();
  kj::Vector<kj::Promise<OwnFd>> opened;
  for (control::FileSource::Client& source : sources) {
    opened.add(source.openRequest().send().then([](auto response) { return AwaitFile(response.getFile()); }));
  }
  return kj::joinPromises(opened.releaseAsArray()).then([this](kj::Array<OwnFd> files) {
    for (OwnFd& file : files) given_away.push_back(std::move(file));
  });
}

DevicePlan& Planner::Add(std::string name, std::string executable) {
  plans_.push_back(std::make_unique<DevicePlan>());
  plans_.back()->name = std::move(name);
  plans_.back()->executable = std::move(executable);
  return *plans_.back();
}

PlannedFunction& Planner::AddFunction(DevicePlan& plan, uint16_t queues, uint16_t vectors) {
  if (next_slot_ >= platform::kMaxPciSlots) {
    throw FatalError("too many devices: a machine has " + std::to_string(platform::kMaxPciSlots) + " PCI slots");
  }
  const uint8_t slot = next_slot_++;
  const auto index = static_cast<uint16_t>(plan.functions.size());
  plan.functions.push_back({.slot = slot,
                            .bar0_address = platform::kPciMmio32Base + slot * virtio_pci::kBarSize,
                            .queues = queues,
                            .vectors = vectors});
  plan.regions.push_back({PlannedRegion::Kind::kConfig, index, kConfigSpaceBytes});
  return plan.functions.back();
}

void Planner::AddVirtioFunction(DevicePlan& plan, uint16_t queues) {
  AddFunction(plan, queues, static_cast<uint16_t>(queues + 1));
  plan.regions.push_back(
      {PlannedRegion::Kind::kBar0, static_cast<uint16_t>(plan.functions.size() - 1), virtio_pci::kBarSize});
  plan.uses_guest_memory = true;
}

void Planner::AddPort(DevicePlan& plan, uint16_t first, uint16_t count) {
  plan.regions.push_back({PlannedRegion::Kind::kPort, first, count});
}

std::vector<std::unique_ptr<DevicePlan>> Planner::Take() {
  std::stable_partition(plans_.begin(), plans_.end(), [](const auto& plan) { return plan->reached_by_guest(); });
  return std::move(plans_);
}

std::vector<std::unique_ptr<DevicePlan>> PlanDevices(control::VmConfig::Reader config, kj::WaitScope& wait) {
  Planner planner(config, wait);
  PlanChipset(planner);
  PlanConsole(planner);
  PlanDisks(planner);
  PlanNets(planner);
  PlanRng(planner);
  return planner.Take();
}

}  // namespace bulkhead::broker
