// SPDX-License-Identifier: Apache-2.0
// Makes the interface of a net process: its tap or packet link behind virtio-net behind virtio-pci; region 0 is
// configuration space, region 1 BAR 0. Main thread, before lock-down.
#pragma once

#include <memory>

#include "device-procs/common/runtime.h"
#include "device-procs/net/transmitter.h"

namespace bulkhead::device {

// Takes settings, outside and function from the grants; throws FatalError.
std::unique_ptr<DeviceModel> MakeNet(DeviceContext context, Transmitter::Log log);

}  // namespace bulkhead::device
