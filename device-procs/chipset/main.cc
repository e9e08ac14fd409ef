// SPDX-License-Identifier: Apache-2.0
// bulkhead-chipset: the board's odds and ends. Holds its interrupt lines and, where asked for, the debug console's
// output; no guest memory.
#include "device-procs/chipset/chipset.h"
#include "device-procs/chipset/chipset_settings.capnp.h"
#include "device-procs/chipset/policy.h"
#include "device-procs/common/runtime.h"

namespace bulkhead::chipset {
namespace {

std::unique_ptr<device::DeviceModel> Create(device::DeviceContext context) {
  const auto settings = context.settings.getAs<ChipsetSettingsMessage>();
  enum Line { kRtc, kSci, kLines };
  if (context.lines.size() != kLines) throw FatalError("chipset: wrong number of interrupt lines");
  OwnFd debug_output = context.files.empty() ? OwnFd() : std::move(context.files.front());
  device::SetNonBlocking(debug_output);
  return std::make_unique<Chipset>(*context.loop,
                                   ChipsetSettings{.memory_bytes = settings.getMemoryBytes(),
                                                   .debug_output = std::move(debug_output),
                                                   .debug_stage = context.TakeStage(0),
                                                   .rtc_irq = std::move(context.lines[kRtc].signal),
                                                   .sci_assert = std::move(context.lines[kSci].signal),
                                                   .sci_resample = std::move(context.lines[kSci].resample)},
                                   context.power_off, context.reset);
}

}  // namespace
}  // namespace bulkhead::chipset

int main(int argc, char** argv) {
  using namespace bulkhead;
  return device::RunDeviceProcess({chipset::ChipsetPolicy(), chipset::Create}, argc, argv);
}
