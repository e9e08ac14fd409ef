// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/pci_config.h"

#include <algorithm>
#include <stdexcept>

#include "device-procs/common/byte_access.h"

namespace bulkhead::device {
namespace {

// Type 0 header (§7.5.1.1, §7.5.1.2).
constexpr size_t kVendorId = 0x00;
constexpr size_t kDeviceId = 0x02;
constexpr size_t kCommand = 0x04;
constexpr size_t kStatus = 0x06;
constexpr size_t kRevision = 0x08;
constexpr size_t kClassCode = 0x09;
constexpr size_t kCacheLineSize = 0x0C;
constexpr size_t kBar0 = 0x10;
constexpr size_t kSubsystemVendorId = 0x2C;
constexpr size_t kSubsystemId = 0x2E;
constexpr size_t kInterruptLine = 0x3C;

constexpr uint16_t kCommandMemory = 1 << 1;
constexpr uint16_t kCommandWritable = 0x0546;  // memory, bus master, parity, SERR#, INTx disable
constexpr uint16_t kStatusCapabilities = 1 << 4;
constexpr uint32_t kBarIs64Bit = 0x4;

}  // namespace

PciConfigSpace::PciConfigSpace(const PciIdentity& identity, uint64_t bar0_size, uint64_t bar0_address) {
  Put16(kVendorId, identity.vendor_id);
  Put16(kDeviceId, identity.device_id);
  Put16(kStatus, kStatusCapabilities);
  bytes_[kRevision] = identity.revision;
  for (size_t i = 0; i < 3; ++i) bytes_[kClassCode + i] = static_cast<uint8_t>(identity.class_code >> (8 * i));
  Put16(kSubsystemVendorId, identity.subsystem_vendor_id);
  Put16(kSubsystemId, identity.subsystem_id);
  Put32(kBar0, static_cast<uint32_t>(bar0_address) | kBarIs64Bit);
  Put32(kBar0 + 4, static_cast<uint32_t>(bar0_address >> 32));

  writable_[kCommand] = kCommandWritable & 0xFF;
  writable_[kCommand + 1] = kCommandWritable >> 8;
  writable_[kCacheLineSize] = 0xFF;
  writable_[kInterruptLine] = 0xFF;
  // Address bits below the size read as zero: that is how software finds the size.
  const uint64_t address_bits = ~(bar0_size - 1);
  for (size_t i = 0; i < 8; ++i) writable_[kBar0 + i] = static_cast<uint8_t>(address_bits >> (8 * i));
}

void PciConfigSpace::Put16(size_t offset, uint16_t value) {
  bytes_[offset] = value & 0xFF;
  bytes_[offset + 1] = value >> 8;
}

void PciConfigSpace::Put32(size_t offset, uint32_t value) {
  Put16(offset, value & 0xFFFF);
  Put16(offset + 2, value >> 16);
}

uint32_t PciConfigSpace::Word32(size_t offset) const {
  return bytes_[offset] | uint32_t{bytes_[offset + 1]} << 8 | uint32_t{bytes_[offset + 2]} << 16 |
         uint32_t{bytes_[offset + 3]} << 24;
}

uint8_t PciConfigSpace::AddCapability(uint8_t id, std::span<const uint8_t> body, std::span<const uint8_t> writable) {
  const size_t offset = next_free_;
  if (offset + 2 + body.size() > kBytes) throw std::logic_error("capabilities do not fit into configuration space");
  bytes_[last_pointer_] = static_cast<uint8_t>(offset);
  bytes_[offset] = id;
  last_pointer_ = offset + 1;
  std::copy(body.begin(), body.end(), bytes_.begin() + static_cast<ptrdiff_t>(offset + 2));
  std::copy(writable.begin(), writable.end(), writable_.begin() + static_cast<ptrdiff_t>(offset + 2));
  next_free_ = (offset + 2 + body.size() + 3) / 4 * 4;
  return static_cast<uint8_t>(offset);
}

uint64_t PciConfigSpace::Read(uint64_t offset, uint8_t width) const {
  return ReadAsBytes(offset, width, [this](uint64_t at) { return at < kBytes ? bytes_[at] : uint8_t{0}; });
}

void PciConfigSpace::Write(uint64_t offset, uint8_t width, uint64_t value) {
  WriteAsBytes(offset, width, value, [this](uint64_t at, uint8_t byte) {
    if (at >= kBytes) return;
    bytes_[at] = static_cast<uint8_t>((bytes_[at] & ~writable_[at]) | (byte & writable_[at]));
  });
}

PciDecode PciConfigSpace::Decode() const {
  return {.memory_enabled = (bytes_[kCommand] & kCommandMemory) != 0,
          .bar0_address = (uint64_t{Word32(kBar0 + 4)} << 32 | Word32(kBar0)) & ~uint64_t{0xF}};
}

Result<void> PciConfigSpace::Restore(std::span<const uint8_t> bytes) {
  if (bytes.size() != kBytes) return Error{EINVAL, "saved configuration space has another size"};
  for (size_t i = 0; i < kBytes; ++i) {
    bytes_[i] = static_cast<uint8_t>((bytes_[i] & ~writable_[i]) | (bytes[i] & writable_[i]));
  }
  return {};
}

}  // namespace bulkhead::device
