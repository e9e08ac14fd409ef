// SPDX-License-Identifier: Apache-2.0
#include "device-procs/chipset/host_bridge.h"

#include "device-procs/common/byte_access.h"

namespace bulkhead::chipset {
namespace {

// Red Hat's numbers for a generic PCIe host bridge of a virtual machine.
constexpr uint16_t kVendorId = 0x1B36;
constexpr uint16_t kDeviceId = 0x0008;
constexpr uint32_t kClassHostBridge = 0x060000;

// Offsets of the type 0 header. All else reads 0: no BARs, no capabilities (also at 0x100), no interrupt pin.
constexpr uint64_t kOffsetVendorId = 0x00;
constexpr uint64_t kOffsetDeviceId = 0x02;
constexpr uint64_t kOffsetCommand = 0x04;
constexpr uint64_t kOffsetClass = 0x09;

constexpr uint16_t kCommandDefault = 0x0006;   // memory space, bus master
constexpr uint16_t kCommandWritable = 0x0547;  // I/O, memory, master, parity, SERR#, INTx disable

}  // namespace

HostBridge::HostBridge() : command_(kCommandDefault) {}

uint8_t HostBridge::Byte(uint64_t offset) const {
  switch (offset) {
    case kOffsetVendorId:
      return kVendorId & 0xFF;
    case kOffsetVendorId + 1:
      return kVendorId >> 8;
    case kOffsetDeviceId:
      return kDeviceId & 0xFF;
    case kOffsetDeviceId + 1:
      return kDeviceId >> 8;
    case kOffsetCommand:
      return command_ & 0xFF;
    case kOffsetCommand + 1:
      return static_cast<uint8_t>(command_ >> 8);
    case kOffsetClass:
    case kOffsetClass + 1:
    case kOffsetClass + 2:
      return static_cast<uint8_t>(kClassHostBridge >> (8 * (offset - kOffsetClass)));
    default:
      return 0;
  }
}

uint64_t HostBridge::Read(uint64_t offset, uint8_t width) const {
  return device::ReadAsBytes(offset, width, [this](uint64_t at) { return Byte(at); });
}

void HostBridge::Write(uint64_t offset, uint8_t width, uint64_t value) {
  device::WriteAsBytes(offset, width, value, [this](uint64_t at, uint8_t byte) {
    if (at != kOffsetCommand && at != kOffsetCommand + 1) return;
    const int shift = 8 * static_cast<int>(at - kOffsetCommand);
    command_ = static_cast<uint16_t>(((command_ & ~(0xFF << shift)) | byte << shift) & kCommandWritable);
  });
}

void HostBridge::Restore(state::HostBridgeState::Reader state) { command_ = state.getCommand() & kCommandWritable; }

}  // namespace bulkhead::chipset
