// SPDX-License-Identifier: Apache-2.0
// The registers of a virtio-pci function in a real device process, reached over its exit channel.
#pragma once

#include "device-procs/common/virtio_pci_registers.h"
#include "tests/process/device_process.h"

namespace bulkhead::test {

class ProcessFunction : public device::test::FunctionRegisters {
 public:
  // Its configuration space is the process's region of that number, its BAR the next.
  explicit ProcessFunction(DeviceProcess& process, uint16_t first_region = 0)
      : process_(process), first_region_(first_region) {}

 protected:
  DeviceProcess& process() { return process_; }

 private:
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override {
    return process_.channel().Read(static_cast<uint16_t>(first_region_ + region), offset, width);
  }
  device::WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override {
    process_.channel().Write(static_cast<uint16_t>(first_region_ + region), offset, width, value);
    return {};
  }

  DeviceProcess& process_;
  const uint16_t first_region_;
};

}  // namespace bulkhead::test
