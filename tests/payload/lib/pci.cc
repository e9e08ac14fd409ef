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
constexpr uint16_t kConfigAddress = 0xCF8, kConfigData = 0xCFC;
constexpr uint64_t kBarWindow = 0xC000'0000;  // above memory, below every chipset's own

struct Bar {
  uint64_t address;
  uint64_t bytes;  // 0 for none, or one of ports
};

uint32_t ReadByPorts(unsigned slot, unsigned offset, unsigned bytes) {
  Out32(kConfigAddress, ConfigAddress(slot, offset));
  const auto port = static_cast<uint16_t>(kConfigData + offset % 4);
  return bytes == 1 ? In8(port) : bytes == 2 ? In16(port) : In32(port);
}

// Whether the host bridge is there: elsewhere there is nothing, which reads as any value.
bool HasEcam() {
  static const bool found = Load<uint32_t>(EcamAddress(0, 0)) == ReadByPorts(0, 0, 4);
  return found;
}

void WriteBar(const PciFunction& function, unsigned index, bool wide, uint64_t value) {
  function.Write<uint32_t>(kBar0 + 4 * index, static_cast<uint32_t>(value));
  if (wide) function.Write<uint32_t>(kBar0 + 4 * index + 4, static_cast<uint32_t>(value >> 32));
}

uint64_t ReadBar(const PciFunction& function, unsigned index, bool wide) {
  const uint64_t high = wide ? function.Read<uint32_t>(kBar0 + 4 * index + 4) : 0xFFFF'FFFF;
  return function.Read<uint32_t>(kBar0 + 4 * index) | high << 32;
}

// Memory decode is off meanwhile.
Bar SizeBar(const PciFunction& function, unsigned index) {
  const uint32_t type = function.Read<uint32_t>(kBar0 + 4 * index);
  if ((type & 1) != 0) return {};
  const bool wide = (type & 6) == 4;
  const uint64_t address = ReadBar(function, index, wide);
  WriteBar(function, index, wide, ~0ull);
  const uint64_t mask = ReadBar(function, index, wide);
  WriteBar(function, index, wide, address);
  if (static_cast<uint32_t>(mask) == 0) return {};
  return {(wide ? address : address & 0xFFFF'FFFF) & ~15ull, ~(mask & ~15ull) + 1};
}

}  // namespace

uint32_t ReadConfig(unsigned slot, unsigned offset, unsigned bytes) {
  if (!HasEcam()) return ReadByPorts(slot, offset, bytes);
  const uint64_t address = EcamAddress(slot, offset);
  return bytes == 1 ? Load<uint8_t>(address) : bytes == 2 ? Load<uint16_t>(address) : Load<uint32_t>(address);
}

void WriteConfig(unsigned slot, unsigned offset, unsigned bytes, uint32_t value) {
  const uint64_t address = EcamAddress(slot, offset);
  const auto port = static_cast<uint16_t>(kConfigData + offset % 4);
  const bool by_ports = !HasEcam();
  if (by_ports) Out32(kConfigAddress, ConfigAddress(slot, offset));
  switch (bytes) {
    case 1:
      return by_ports ? Out8(port, static_cast<uint8_t>(value)) : Store(address, static_cast<uint8_t>(value));
    case 2:
      return by_ports ? Out16(port, static_cast<uint16_t>(value)) : Store(address, static_cast<uint16_t>(value));
    default:
      return by_ports ? Out32(port, value) : Store(address, value);
  }
}

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
  LocateMsix();
}

// Each of the two structures says in its lowest bits which BAR it is in (PCI 3.0 §6.8.2).
void PciFunction::LocateMsix() {
  if (msix == 0) return;
  const auto table = Read<uint32_t>(msix + 4), pending = Read<uint32_t>(msix + 8);
  msix_table = MapBar(table & 7) + (table & ~7u);
  msix_pending = MapBar(pending & 7) + (pending & ~7u);
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

uint64_t PciFunction::MapBar(unsigned index) const {
  if (index == 0) return bar0;
  SetMemoryDecode(false);
  Bar bar = SizeBar(*this, index);
  if (bar.bytes != 0 && bar.address == 0) {
    static uint64_t next = kBarWindow;
    bar.address = (next + bar.bytes - 1) & ~(bar.bytes - 1);
    next = bar.address + bar.bytes;
    WriteBar(*this, index, false, bar.address);
  }
  if (bar.bytes != 0) MapHigh(bar.address, bar.bytes);
  SetMemoryDecode(true);
  return bar.address;
}

bool PciFunction::MsixPending(unsigned index) const {
  return (Load<uint32_t>(msix_pending + index / 32 * 4) >> index % 32 & 1) != 0;
}

bool FindPci(uint16_t vendor, uint16_t device, PciFunction* function, unsigned n) {
  for (unsigned slot = 0; slot < 32; ++slot) {
    PciFunction found{.slot = slot};
    if (found.Read<uint32_t>(0) != (uint32_t{device} << 16 | vendor) || n-- != 0) continue;
    found.SetMemoryDecode(false);
    const Bar bar = SizeBar(found, 0);
    found.bar0_bytes = bar.bytes;
    found.msix = found.Capability(kMsixCapability);
    if (found.msix != 0) found.vectors = (found.Read<uint16_t>(found.msix + 2) & 0x7FF) + 1u;
    if (bar.bytes != 0) {
      found.SetBar0(bar.address);
    } else {
      found.LocateMsix();
    }
    *function = found;
    return true;
  }
  return false;
}

}  // namespace payload
