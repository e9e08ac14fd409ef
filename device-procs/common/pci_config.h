// SPDX-License-Identifier: Apache-2.0
// Configuration space of one PCI Express function with a type 0 header and one 64-bit memory BAR (PCIe 4.0 §7.5.1).
// Device thread; offsets lie inside the space, values are the guest's.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "device-procs/common/device_model.h"

namespace bulkhead::device {

struct PciIdentity {
  uint16_t vendor_id = 0;
  uint16_t device_id = 0;
  uint8_t revision = 0;
  uint32_t class_code = 0;  // 24 bits
  uint16_t subsystem_vendor_id = 0;
  uint16_t subsystem_id = 0;
};

class PciConfigSpace {
 public:
  static constexpr size_t kBytes = 256;  // the rest of the 4 KiB reads as zero: no extended capabilities

  // `bar0_size` is a power of two of at least 16.
  PciConfigSpace(const PciIdentity& identity, uint64_t bar0_size, uint64_t bar0_address);

  // Appends a capability: its id, then `body` (all after the next pointer), writable where `writable` has bits set.
  // Returns its offset.
  uint8_t AddCapability(uint8_t id, std::span<const uint8_t> body, std::span<const uint8_t> writable = {});

  uint64_t Read(uint64_t offset, uint8_t width) const;
  void Write(uint64_t offset, uint8_t width, uint64_t value);

  PciDecode Decode() const;
  uint8_t Byte(size_t offset) const { return bytes_[offset]; }
  uint32_t Word32(size_t offset) const;

  std::span<const uint8_t> Save() const { return bytes_; }
  // Takes over the writable bits only; EINVAL for another size.
  Result<void> Restore(std::span<const uint8_t> bytes);

 private:
  void Put16(size_t offset, uint16_t value);
  void Put32(size_t offset, uint32_t value);

  std::array<uint8_t, kBytes> bytes_{};
  std::array<uint8_t, kBytes> writable_{};
  size_t last_pointer_ = 0x34;  // where the next capability's offset goes
  size_t next_free_ = 0x40;
};

}  // namespace bulkhead::device
