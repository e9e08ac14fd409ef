// SPDX-License-Identifier: Apache-2.0
// PCI functions of bus 0: configuration space, memory BARs, MSI-X.
#pragma once

#include "tests/payload/lib/payload.h"

namespace payload {

inline constexpr uint64_t kEcam = 0xE000'0000;

inline constexpr uint32_t ConfigAddress(unsigned slot, unsigned offset) {
  return 0x8000'0000u | slot << 11 | (offset & 0xFC);
}
inline uint64_t EcamAddress(unsigned slot, unsigned offset) { return kEcam + (uint64_t{slot} << 15) + offset; }

// Configuration space by ECAM where it is Bulkhead's place for it, else by the ports that every PC has.
uint32_t ReadConfig(unsigned slot, unsigned offset, unsigned bytes);
void WriteConfig(unsigned slot, unsigned offset, unsigned bytes, uint32_t value);

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
    return static_cast<T>(ReadConfig(slot, offset, sizeof(T)));
  }
  template <typename T>
  void Write(unsigned offset, T value) const {
    WriteConfig(slot, offset, sizeof(T), value);
  }
  // The n-th capability of that id from 0, or 0.
  unsigned Capability(uint8_t id, unsigned n = 0) const;
  void SetMemoryDecode(bool on) const;
  void SetBar0(uint64_t address);
  void LocateMsix();
  // Where that BAR is, which gets a place if no firmware gave it one; it is decoded and mapped.
  uint64_t MapBar(unsigned index) const;
  // Bits 15 and 14 of message control.
  void SetMsix(bool enabled, bool function_masked) const;
  // Points an MSI-X vector at a vector of the processor.
  void SetMsixVector(unsigned index, uint8_t vector, uint32_t apic_id, bool masked) const;
  void MaskMsixVector(unsigned index, bool masked) const;
  bool MsixPending(unsigned index) const;
};

// The n-th function with that vendor and device id; BAR 0, if it has one, is sized, decoded and mapped.
bool FindPci(uint16_t vendor, uint16_t device, PciFunction* function, unsigned n = 0);

}  // namespace payload
