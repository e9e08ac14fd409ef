// SPDX-License-Identifier: Apache-2.0
// Devices with byte-wide registers: the ISA bus carries a wider access to them as one access for each byte,
// lowest address first. Device thread; offset, width and value are hostile but lie inside the region (the
// runtime checked).
#pragma once

#include <cstdint>

namespace bulkhead::device {

// read(offset) -> uint8_t for each byte.
template <typename ReadByte>
uint64_t ReadAsBytes(uint64_t offset, uint8_t width, ReadByte read) {
  uint64_t value = 0;
  for (uint8_t i = 0; i < width && i < 8; ++i) value |= static_cast<uint64_t>(read(offset + i)) << (8 * i);
  return value;
}

// write(offset, byte) for each byte.
template <typename WriteByte>
void WriteAsBytes(uint64_t offset, uint8_t width, uint64_t value, WriteByte write) {
  for (uint8_t i = 0; i < width && i < 8; ++i) write(offset + i, static_cast<uint8_t>(value >> (8 * i)));
}

}  // namespace bulkhead::device
