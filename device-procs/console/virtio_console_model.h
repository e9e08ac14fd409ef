// SPDX-License-Identifier: Apache-2.0
// Puts the virtio console behind virtio-pci. Console process, before lock-down.
#pragma once

#include <memory>

#include "device-procs/common/runtime.h"
#include "device-procs/console/virtio_console.h"

namespace bulkhead::device {

// Takes the first granted function. Throws FatalError where there is none, or no guest memory.
std::unique_ptr<DeviceModel> MakeVirtioConsole(DeviceContext& context, std::unique_ptr<BytePort> port,
                                               ConsoleSize size = {});

}  // namespace bulkhead::device
