// SPDX-License-Identifier: Apache-2.0
// bulkhead-disk: virtio-blk. Holds guest memory and one disk image, with the files below it.
#include "device-procs/common/runtime.h"
#include "device-procs/disk/disk.h"
#include "device-procs/disk/policy.h"
#include "ipc/child.h"

namespace bulkhead::device {
namespace {

// The tables of an image that are kept, and what decompression takes.
constexpr size_t kDiskHeapBytes = size_t{96} << 20;

std::unique_ptr<DeviceModel> Create(DeviceContext context) { return MakeDisk(std::move(context), LogLine); }

}  // namespace
}  // namespace bulkhead::device

int main(int argc, char** argv) {
  using namespace bulkhead;
  return device::RunDeviceProcess({device::DiskPolicy(), device::Create, device::kDiskHeapBytes}, argc, argv);
}
