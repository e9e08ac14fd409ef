// SPDX-License-Identifier: Apache-2.0
// PCI functions of bus 0: configuration space, BAR 0, MSI-X.
#pragma once

#include "tests/payload/lib/payload.h"

namespace payload {

inline constexpr uint64_t kEcam = 0xE000'0000;

inline constexpr uint32_t ConfigAddress(unsigned slot, unsigned offset) {
  return 0x8000'0000u | slot << 11 | (offset & 0xFC);
}
inline uint64_t EcamAddress(unsigned slot, unsigned offset) { return kEcam + (uint64_t{slot} << 15) + offset; }

struct PciFunction {
  unsigned slot = 0;
  uint64_t bar0 = 0;
  uint64_t bar0_bytes = 0;
  unsigned msix = 0;  // offset of the capability, 0 for none
  unsigned vectors = 0;
  uint64_t msix_table = 0;
  uint64_t msix_pending = 0;

  template <typename T>
  T Read(unsigned offset) const {
    return Load<T>(EcamAddress(slot, offset));
  }
  template <typename T>
  void Write(unsigned offset, T value) const {
    Store<T>(EcamAddress(slot, offset), value);
  }
  // The n-th capability of that id from 0, or 0.
  unsigned Capability(uint8_t id, unsigned n = 0) const;
  void SetMemoryDecode(bool on) const;
  void SetBar0(uint64_t address);
  // Bits 15 and 14 of message control.
  void SetMsix(bool enabled, bool function_masked) const;
  // Points an MSI-X vector at a vector of the processor.
  void SetMsixVector(unsigned index, uint8_t vector, uint32_t apic_id, bool masked) const;
  void MaskMsixVector(unsigned index, bool masked) const;
  bool MsixPending(unsigned index) const;
};

// The n-th function with that vendor and device id; BAR 0 is sized, decoded and mapped.
bool FindPci(uint16_t vendor, uint16_t device, PciFunction* function, unsigned n = 0);

}  // namespace payload
