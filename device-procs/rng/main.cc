// SPDX-License-Identifier: Apache-2.0
// bulkhead-rng: virtio-rng. Holds guest memory and nothing of the host but the right to call getrandom.
#include "device-procs/common/runtime.h"
#include "device-procs/common/virtio_pci.h"
#include "device-procs/rng/policy.h"
#include "device-procs/rng/virtio_rng.h"

namespace bulkhead::device {
namespace {

std::unique_ptr<DeviceModel> Create(DeviceContext context) {
  return std::make_unique<VirtioPci>(std::make_unique<VirtioRng>(*context.memory), *context.loop, *context.memory,
                                     std::move(context.functions.at(0)), *context.recorder);
}

}  // namespace
}  // namespace bulkhead::device

int main(int argc, char** argv) {
  using namespace bulkhead;
  return device::RunDeviceProcess({device::RngPolicy(), device::Create}, argc, argv);
}
