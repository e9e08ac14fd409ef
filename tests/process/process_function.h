// SPDX-License-Identifier: Apache-2.0
// The registers of a virtio-pci function in a real device process, reached over its exit channel.
#pragma once

#include "device-procs/common/virtio_pci_registers.h"
#include "tests/process/device_process.h"

namespace bulkhead::test {

class ProcessFunction : public device::test::FunctionRegisters {
 public:
  explicit ProcessFunction(DeviceProcess& process) : process_(process) {}

 protected:
  DeviceProcess& process() { return process_; }

 private:
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override {
    return process_.channel().Read(region, offset, width);
  }
  device::WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override {
    process_.channel().Write(region, offset, width, value);
    return {};
  }

  DeviceProcess& process_;
};

}  // namespace bulkhead::test
