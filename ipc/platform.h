// SPDX-License-Identifier: Apache-2.0
// The machine a guest sees: its fixed addresses, ports and interrupt lines, in one place. The broker plans with them,
// the runner routes and writes ACPI tables with them, device processes answer at them. Constants only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ipc/guest_memory.h"

namespace bulkhead::platform {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// Guest physical memory map. RAM below the 32-bit hole ends here; the rest continues at 4 GiB.
inline constexpr uint64_t kLowRamLimit = 3 * kGiB;
inline constexpr uint64_t kHighRamBase = 4 * kGiB;
inline constexpr uint64_t kPciMmio32Base = 0xC000'0000;  // PCI memory window, 512 MiB
inline constexpr uint64_t kPciMmio32Size = 0x2000'0000;
inline constexpr uint64_t kEcamBase = 0xE000'0000;  // PCIe 4.0 §7.2.2: 4 KiB per function, 1 MiB per bus
inline constexpr uint64_t kEcamSize = 0x0010'0000;  // bus 0 only
inline constexpr uint64_t kIoApicBase = 0xFEC0'0000;
inline constexpr uint64_t kLocalApicBase = 0xFEE0'0000;
// KVM on Intel wants three pages for a TSS and one for an identity map (api.rst §4.36, §4.55), below any firmware ROM.
inline constexpr uint64_t kKvmIdentityMapBase = 0xFEFF'B000;
inline constexpr uint64_t kKvmTssBase = 0xFEFF'C000;

// The PCI memory window above 4 GiB starts at the first multiple of this above RAM.
inline constexpr uint64_t kPciMmio64Alignment = 1 * kGiB;
inline constexpr uint64_t kPciMmio64Size = 16 * kGiB;

// I/O ports.
inline constexpr uint16_t kPortCmosIndex = 0x70;  // 2 ports
inline constexpr uint16_t kPortI8042Data = 0x60;
inline constexpr uint16_t kPortI8042Status = 0x64;
inline constexpr uint16_t kPortPostCode = 0x80;
inline constexpr uint16_t kPortDebugConsole = 0x402;  // reads 0xE9 where a debug console exists; writes are its output
inline constexpr uint8_t kDebugConsoleId = 0xE9;
inline constexpr uint16_t kPortSerial0 = 0x3F8;  // 8 ports
inline constexpr uint16_t kPortPciConfigAddress = 0xCF8;
inline constexpr uint16_t kPortResetControl = 0xCF9;  // one byte inside the configuration address dword
inline constexpr uint16_t kPortPciConfigData = 0xCFC;
inline constexpr uint16_t kPortPm1aEvent = 0x600;    // 4 ports: PM1 status, PM1 enable (ACPI 6.4 §4.8.3.1)
inline constexpr uint16_t kPortPm1aControl = 0x604;  // 2 ports (§4.8.3.2)
inline constexpr uint16_t kPortPmTimer = 0x608;      // 4 ports (§4.8.3.3)

inline constexpr uint8_t kResetControlFull = 0x06;  // value of the FADT reset register write
inline constexpr uint8_t kI8042PulseReset = 0xFE;
inline constexpr uint8_t kSleepTypeS5 = 5;  // SLP_TYP value that the \_S5 object names

// Interrupt lines: IOAPIC pins and PIC lines share numbers (GSI n = ISA IRQ n; GSI 2 stands for IRQ 0).
inline constexpr uint32_t kIrqTimer = 0;
inline constexpr uint32_t kIrqSerial0 = 4;  // edge
inline constexpr uint32_t kIrqRtc = 8;      // edge
inline constexpr uint32_t kIrqSci = 9;      // level, active high
inline constexpr uint32_t kIoApicPins = 24;

inline constexpr uint32_t kMaxVcpus = 64;
inline constexpr uint32_t kMaxPciSlots = 32;  // bus 0, function 0 of each

// RAM as regions of the guest-memory file, in address order: low RAM first, from file offset 0.
inline std::vector<MemoryRegion> RamRegions(uint64_t memory_bytes) {
  const uint64_t low = memory_bytes < kLowRamLimit ? memory_bytes : kLowRamLimit;
  std::vector<MemoryRegion> regions{{Gpa{0}, low, 0}};
  if (memory_bytes > low) regions.push_back({Gpa{kHighRamBase}, memory_bytes - low, low});
  return regions;
}

inline uint64_t PciMmio64Base(uint64_t memory_bytes) {
  const uint64_t high = memory_bytes > kLowRamLimit ? memory_bytes - kLowRamLimit : 0;
  return (kHighRamBase + high + kPciMmio64Alignment - 1) / kPciMmio64Alignment * kPciMmio64Alignment;
}

}  // namespace bulkhead::platform

namespace bulkhead::virtio_pci {

// BAR 0 of every virtio function (virtio 1.2 §4.1.4): one 64-bit memory BAR, all structures inside.
inline constexpr uint64_t kBarSize = 0x8000;
inline constexpr uint64_t kCommonConfig = 0x0000;
inline constexpr uint64_t kIsr = 0x1000;
inline constexpr uint64_t kDeviceConfig = 0x2000;
inline constexpr uint64_t kMsixTable = 0x3000;
inline constexpr uint64_t kMsixPba = 0x3800;
inline constexpr uint64_t kNotify = 0x4000;
inline constexpr uint64_t kNotifyMultiplier = 4;
inline constexpr uint16_t kMaxVectors = 128;  // what fits between table and PBA
inline constexpr uint16_t kMaxQueues = 127;   // one vector each, and one for configuration changes
// Writes to [kPostedBegin, kPostedEnd) may be posted; the MSI-X structures are written with a reply, since the
// runner must know a vector's new route before the device may use it.
inline constexpr uint64_t kMsixBegin = kMsixTable;
inline constexpr uint64_t kMsixEnd = kNotify;

}  // namespace bulkhead::virtio_pci
