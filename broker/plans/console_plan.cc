// SPDX-License-Identifier: Apache-2.0
// The console process: the serial port ttyS0 and, where it is asked for, the virtio console hvc0.
#include "broker/device_plan.h"
#include "device-procs/console/console_settings.capnp.h"
#include "ipc/platform.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

constexpr uint16_t kSerialPorts = 8;
constexpr uint16_t kConsoleQueues = 2;
// As device-procs/console/console.h numbers them.
constexpr uint8_t kSerialPort = 0;
constexpr uint8_t kVirtioPort = 1;

void TakeStream(control::StreamConfig::Reader from, console::ConsoleSettings::Stream::Builder to, DevicePlan& plan,
                uint8_t port, kj::WaitScope& wait) {
  to.setHasInput(from.hasInput());
  to.setHasOutput(from.hasOutput());
  if (from.hasInput()) plan.files.push_back(TakeFile(from.getInput(), wait));
  if (from.hasOutput()) plan.files.push_back(TakeFile(from.getOutput(), wait));
  if (from.hasListener()) plan.listeners.push_back({port, TakeFile(from.getListener(), wait)});
}

}  // namespace

void PlanConsole(Planner& planner) {
  const auto config = planner.config();
  DevicePlan& plan = planner.Add("console", "bulkhead-console");
  planner.AddPort(plan, platform::kPortSerial0, kSerialPorts);
  plan.lines.push_back({.gsi = platform::kIrqSerial0, .level = false});
  plan.replacement = DevicePlan::Replacement::kAlways;
  plan.outputs = 1;
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  auto settings = plan.settings->initRoot<console::ConsoleSettings>();
  TakeStream(config.getSerial(), settings.initSerial(), plan, kSerialPort, planner.wait());
  if (!config.hasVirtioConsole()) return;
  planner.AddVirtioFunction(plan, kConsoleQueues);
  settings.setHasVirtioConsole(true);
  ++plan.outputs;
  TakeStream(config.getVirtioConsole(), settings.initVirtioConsole(), plan, kVirtioPort, planner.wait());
}

}  // namespace bulkhead::broker
