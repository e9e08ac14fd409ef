// SPDX-License-Identifier: Apache-2.0
// Makes the disk of a disk process: its image, and the files below that, behind virtio-blk behind virtio-pci; region 0
// is configuration space, region 1 BAR 0. Main thread, before lock-down.
#pragma once

#include <memory>

#include "device-procs/common/runtime.h"
#include "device-procs/disk/queue_server.h"

namespace bulkhead::device {

// Takes settings, image and function from the grants; throws FatalError.
std::unique_ptr<DeviceModel> MakeDisk(DeviceContext context, QueueServer::Log log);

}  // namespace bulkhead::device
