// SPDX-License-Identifier: Apache-2.0
#include "device-procs/console/virtio_console_model.h"

#include "device-procs/common/virtio_pci.h"

namespace bulkhead::device {

std::unique_ptr<DeviceModel> MakeVirtioConsole(DeviceContext& context, std::unique_ptr<BytePort> port,
                                               ConsoleSize size) {
  if (context.memory == nullptr || context.functions.empty()) {
    throw FatalError("virtio console: neither guest memory nor a PCI function was granted");
  }
  return std::make_unique<VirtioPci>(std::make_unique<VirtioConsole>(*context.memory, std::move(port), size),
                                     *context.loop, *context.memory, std::move(context.functions.front()),
                                     *context.recorder);
}

}  // namespace bulkhead::device
