// SPDX-License-Identifier: Apache-2.0
// The chipset process: ports of the board, host bridge, power management. It needs no guest memory.
#include "broker/device_plan.h"
#include "device-procs/chipset/chipset_settings.capnp.h"
#include "device-procs/chipset/regions.h"
#include "ipc/platform.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {

void PlanChipset(Planner& planner) {
  DevicePlan& plan = planner.Add("chipset", "bulkhead-chipset");
  for (const chipset::PortRegion& port : chipset::kPortRegions) planner.AddPort(plan, port.port, port.count);
  planner.AddFunction(plan, 0, 0);
  plan.lines.push_back({.gsi = platform::kIrqRtc, .level = false});
  plan.lines.push_back({.gsi = platform::kIrqSci, .level = true});
  plan.replacement = DevicePlan::Replacement::kAlways;
  plan.outputs = 1;
  plan.controls_machine = true;
  plan.takes_power_button = true;
  const auto config = planner.config();
  if (config.hasDebugConsole()) plan.files.push_back(TakeFile(config.getDebugConsole(), planner.wait()));
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  plan.settings->initRoot<chipset::ChipsetSettingsMessage>().setMemoryBytes(config.getMemoryBytes());
}

}  // namespace bulkhead::broker
