// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/pci.h"

namespace payload {
namespace {

constexpr unsigned kCommand = 0x04;
constexpr uint16_t kMemoryDecode = 0x2;
constexpr uint16_t kBusMaster = 0x4;
constexpr unsigned kBar0 = 0x10;
constexpr unsigned kCapabilities = 0x34;
constexpr uint8_t kMsixCapability = 0x11;

}  // namespace

unsigned PciFunction::Capability(uint8_t id, unsigned n) const {
  // At most what fits: a list that runs in a circle ends too.
  unsigned at = Read<uint8_t>(kCapabilities);
  for (unsigned seen = 0; at >= 0x40 && seen < 48; ++seen) {
    if (Read<uint8_t>(at) == id && n-- == 0) return at;
    at = Read<uint8_t>(at + 1);
  }
  return 0;
}

void PciFunction::SetMemoryDecode(bool on) const {
  const uint16_t command = Read<uint16_t>(kCommand);
  Write<uint16_t>(kCommand, on ? command | kMemoryDecode | kBusMaster : command & ~kMemoryDecode);
}

void PciFunction::SetBar0(uint64_t address) {
  SetMemoryDecode(false);
  Write<uint32_t>(kBar0, static_cast<uint32_t>(address));
  Write<uint32_t>(kBar0 + 4, static_cast<uint32_t>(address >> 32));
  bar0 = address;
  MapHigh(address, bar0_bytes);
  SetMemoryDecode(true);
  if (msix == 0) return;
  msix_table = bar0 + (Read<uint32_t>(msix + 4) & ~7u);
  msix_pending = bar0 + (Read<uint32_t>(msix + 8) & ~7u);
}

void PciFunction::SetMsix(bool enabled, bool function_masked) const {
  uint16_t control = Read<uint16_t>(msix + 2) & 0x3FFF;
  if (enabled) control |= 0x8000;
  if (function_masked) control |= 0x4000;
  Write<uint16_t>(msix + 2, control);
}

void PciFunction::SetMsixVector(unsigned index, uint8_t vector, uint32_t apic_id, bool masked) const {
  const uint64_t entry = msix_table + 16 * index;
  Store<uint32_t>(entry + 12, 1);
  Store<uint32_t>(entry, 0xFEE0'0000 | apic_id << 12);
  Store<uint32_t>(entry + 4, 0);
  Store<uint32_t>(entry + 8, vector);
  Store<uint32_t>(entry + 12, masked ? 1 : 0);
}

void PciFunction::MaskMsixVector(unsigned index, bool masked) const {
  Store<uint32_t>(msix_table + 16 * index + 12, masked ? 1 : 0);
}

bool PciFunction::MsixPending(unsigned index) const {
  return (Load<uint32_t>(msix_pending + index / 32 * 4) >> index % 32 & 1) != 0;
}

bool FindPci(uint16_t vendor, uint16_t device, PciFunction* function, unsigned n) {
  for (unsigned slot = 0; slot < 32; ++slot) {
    PciFunction found{.slot = slot};
    if (found.Read<uint32_t>(0) != (uint32_t{device} << 16 | vendor) || n-- != 0) continue;
    found.SetMemoryDecode(false);
    const uint64_t bar = found.Read<uint32_t>(kBar0) | uint64_t{found.Read<uint32_t>(kBar0 + 4)} << 32;
    found.Write<uint32_t>(kBar0, 0xFFFF'FFFF);
    found.Write<uint32_t>(kBar0 + 4, 0xFFFF'FFFF);
    const uint64_t mask = found.Read<uint32_t>(kBar0) | uint64_t{found.Read<uint32_t>(kBar0 + 4)} << 32;
    found.bar0_bytes = ~(mask & ~15ull) + 1;
    found.msix = found.Capability(kMsixCapability);
    if (found.msix != 0) found.vectors = (found.Read<uint16_t>(found.msix + 2) & 0x7FF) + 1u;
    found.SetBar0(bar & ~15ull);
    *function = found;
    return true;
  }
  return false;
}

}  // namespace payload
