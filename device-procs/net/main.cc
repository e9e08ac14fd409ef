// SPDX-License-Identifier: Apache-2.0
// bulkhead-net: virtio-net. Holds guest memory and one tap, or one end of a packet link to a bulkhead-usernet.
#include "device-procs/common/runtime.h"
#include "device-procs/net/net.h"
#include "device-procs/net/policy.h"
#include "ipc/child.h"

namespace bulkhead::device {
namespace {

std::unique_ptr<DeviceModel> Create(DeviceContext context) { return MakeNet(std::move(context), LogLine); }

}  // namespace
}  // namespace bulkhead::device

int main(int argc, char** argv) {
  using namespace bulkhead;
  return device::RunDeviceProcess({device::NetPolicy(), device::Create}, argc, argv);
}
