// SPDX-License-Identifier: Apache-2.0
// bulkhead-disk: virtio-blk on one image. Holds guest memory and that image's descriptor.
#include "device-procs/common/runtime.h"
#include "device-procs/disk/disk.h"
#include "device-procs/disk/policy.h"
#include "ipc/child.h"

int main(int argc, char** argv) {
  using namespace bulkhead;
  const device::DeviceKind kind{
      .policy = device::DiskPolicy,
      .create = [](device::DeviceContext context) { return device::MakeDisk(std::move(context), LogLine); }};
  return device::RunDeviceProcess(kind, argc, argv);
}
