// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/boot/acpi_tables.h"

#include <array>
#include <cstring>
#include <numeric>
#include <string_view>
#include <vector>

#include "ipc/platform.h"
#include "vcpu-runner/boot/dsdt_aml.h"
#include "vcpu-runner/boot/memory_map.h"

namespace bulkhead::runner {
namespace {

constexpr uint64_t kHeaderBytes = 36;
constexpr uint64_t kLengthOffset = 4;
constexpr uint64_t kChecksumOffset = 9;

// Bytes of a table, appended field by field, little-endian.
class Table {
 public:
  // The common header (§5.2.6); length and checksum are set by Finish.
  Table(std::string_view signature, uint8_t revision) {
    Text(signature, 4);
    U32(0);
    U8(revision);
    U8(0);
    Text("BULKHD", 6);
    Text("BULKHEAD", 8);
    U32(1);
    Text("BLKH", 4);
    U32(1);
  }
  Table() = default;

  Table& U8(uint8_t value) { return Put(value); }
  Table& U16(uint16_t value) { return Put(value); }
  Table& U32(uint32_t value) { return Put(value); }
  Table& U64(uint64_t value) { return Put(value); }
  Table& Zero(size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  Table& Text(std::string_view text, size_t width) {
    for (size_t i = 0; i < width; ++i) U8(i < text.size() ? static_cast<uint8_t>(text[i]) : ' ');
    return *this;
  }
  // Generic address structure (§5.2.3.2) of an I/O port range.
  Table& Port(uint16_t port, uint8_t bit_width, uint8_t access_size) {
    constexpr uint8_t kSystemIo = 1;
    return U8(kSystemIo).U8(bit_width).U8(0).U8(access_size).U64(port);
  }

  std::vector<uint8_t> Finish() {
    const auto length = static_cast<uint32_t>(bytes_.size());
    std::memcpy(bytes_.data() + kLengthOffset, &length, sizeof length);
    FixChecksum(kChecksumOffset, bytes_.size());
    return std::move(bytes_);
  }
  std::vector<uint8_t> FinishRaw() { return std::move(bytes_); }
  // Makes the first `count` bytes sum to zero.
  void FixChecksum(size_t at, size_t count) {
    const auto end = bytes_.begin() + static_cast<ptrdiff_t>(count);
    bytes_[at] = static_cast<uint8_t>(-std::accumulate(bytes_.begin(), end, 0));
  }

 private:
  template <typename T>
  Table& Put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
    return *this;
  }

  std::vector<uint8_t> bytes_;
};

// Names that the DSDT refers to (\MMB, \MML): AML NameOp, NameString, QWordPrefix (§20.2).
std::vector<uint8_t> MakeSsdt(const Machine& machine) {
  constexpr uint8_t kNameOp = 0x08;
  constexpr uint8_t kQWordPrefix = 0x0E;
  const uint64_t base = platform::PciMmio64Base(machine.memory_bytes);
  Table table("SSDT", 2);
  table.U8(kNameOp).Text("MMB_", 4).U8(kQWordPrefix).U64(base);
  table.U8(kNameOp).Text("MMT_", 4).U8(kQWordPrefix).U64(base + platform::kPciMmio64Size - 1);
  table.U8(kNameOp).Text("MML_", 4).U8(kQWordPrefix).U64(platform::kPciMmio64Size);
  return table.Finish();
}

// Fixed hardware description (§5.2.9), revision 6.
std::vector<uint8_t> MakeFadt(Gpa facs, Gpa dsdt) {
  constexpr uint32_t kFlags = 1 << 0      // WBINVD works
                              | 1 << 2    // C1 on all processors
                              | 1 << 5    // no sleep button
                              | 1 << 8    // the PM timer has 32 bits
                              | 1 << 10;  // the reset register exists
  // Legacy free but for the RTC: no 8042, no VGA to probe.
  constexpr uint16_t kBootArchitecture = 1 << 2;
  constexpr uint8_t kByteAccess = 1, kWordAccess = 2, kDwordAccess = 3;
  constexpr uint8_t kProfileEnterpriseServer = 4;
  constexpr uint16_t kNoC2 = 101, kNoC3 = 1001;  // latencies that say so
  constexpr uint8_t kCenturyRegister = 0x32;
  Table table("FACP", 6);
  table.U32(static_cast<uint32_t>(facs.value)).U32(static_cast<uint32_t>(dsdt.value));
  table.U8(0).U8(kProfileEnterpriseServer).U16(platform::kIrqSci);
  table.U32(0).U8(0).U8(0).U8(0).U8(0);  // no SMI command: ACPI mode is always on
  table.U32(platform::kPortPm1aEvent).U32(0).U32(platform::kPortPm1aControl).U32(0).U32(0);
  table.U32(platform::kPortPmTimer).U32(0).U32(0);
  table.U8(4).U8(2).U8(0).U8(4).U8(0).U8(0).U8(0).U8(0);
  table.U16(kNoC2).U16(kNoC3).U16(0).U16(0).U8(0).U8(0);
  table.U8(0).U8(0).U8(kCenturyRegister).U16(kBootArchitecture).U8(0).U32(kFlags);
  table.Port(platform::kPortResetControl, 8, kByteAccess).U8(platform::kResetControlFull).U16(0).U8(5);
  table.U64(0).U64(dsdt.value);  // the FACS by its 32-bit address alone
  table.Port(platform::kPortPm1aEvent, 32, kWordAccess).Zero(12);
  table.Port(platform::kPortPm1aControl, 16, kWordAccess).Zero(12).Zero(12);
  table.Port(platform::kPortPmTimer, 32, kDwordAccess).Zero(12).Zero(12);
  table.Zero(12).Zero(12).Text("BULKHEAD", 8);
  return table.Finish();
}

// Interrupt controllers (§5.2.12).
std::vector<uint8_t> MakeMadt(const Machine& machine) {
  constexpr uint32_t kPcAtCompatible = 1;  // a pair of 8259s is there as well
  constexpr uint16_t kLevelActiveHigh = 0xD;
  constexpr uint8_t kIoApicIdBase = 0;
  Table table("APIC", 4);
  table.U32(static_cast<uint32_t>(platform::kLocalApicBase)).U32(kPcAtCompatible);
  for (uint32_t i = 0; i < machine.vcpu_count; ++i) {
    table.U8(0).U8(8).U8(static_cast<uint8_t>(i)).U8(static_cast<uint8_t>(i)).U32(1);
  }
  table.U8(1).U8(12).U8(kIoApicIdBase).U8(0).U32(static_cast<uint32_t>(platform::kIoApicBase)).U32(0);
  table.U8(2).U8(10).U8(0).U8(platform::kIrqTimer).U32(2).U16(0);
  table.U8(2).U8(10).U8(0).U8(platform::kIrqSci).U32(platform::kIrqSci).U16(kLevelActiveHigh);
  table.U8(4).U8(6).U8(0xFF).U16(0).U8(1);  // NMI on LINT1 of every processor
  return table.Finish();
}

// Enhanced configuration access (PCI Firmware 3.2 §4.1.2).
std::vector<uint8_t> MakeMcfg() {
  Table table("MCFG", 1);
  table.Zero(8).U64(platform::kEcamBase).U16(0).U8(0).U8(0).U32(0);
  return table.Finish();
}

std::vector<uint8_t> MakeXsdt(const std::vector<Gpa>& entries) {
  Table table("XSDT", 1);
  for (const Gpa entry : entries) table.U64(entry.value);
  return table.Finish();
}

// Root system description pointer (§5.2.5.3): the first checksum covers 20 bytes, the second all 36.
std::vector<uint8_t> MakeRsdp(Gpa xsdt) {
  constexpr size_t kFirstPart = 20, kChecksum = 8, kExtendedChecksum = 32;
  Table table;
  table.Text("RSD PTR ", 8).U8(0).Text("BULKHD", 6).U8(2).U32(0).U32(kHeaderBytes).U64(xsdt.value).U8(0).Zero(3);
  table.FixChecksum(kChecksum, kFirstPart);
  table.FixChecksum(kExtendedChecksum, kHeaderBytes);
  return table.FinishRaw();
}

// Firmware control structure (§5.2.10): no header checksum; nothing here uses it.
std::vector<uint8_t> MakeFacs() {
  Table table;
  table.Text("FACS", 4).U32(64).Zero(24).U8(2).Zero(31);
  return table.FinishRaw();
}

// Places tables one after the other in the ACPI area.
class Area {
 public:
  Area(const GuestMemory& memory, Gpa first) : memory_(memory), next_(first) {}

  Result<Gpa> Add(std::span<const uint8_t> table) {
    constexpr uint64_t kAlignment = 64;  // the FACS wants it
    const Gpa at = next_;
    next_ = Gpa{(at.value + table.size() + kAlignment - 1) / kAlignment * kAlignment};
    if (next_.value > kAcpiBase.value + kAcpiSize) return Error{ENOSPC, "ACPI tables do not fit"};
    if (auto written = memory_.Write(at, std::as_bytes(table)); !written.ok()) return written.error();
    return at;
  }

 private:
  const GuestMemory& memory_;
  Gpa next_;
};

}  // namespace

Result<Gpa> WriteAcpiTables(const GuestMemory& memory, const Machine& machine) {
  Area area(memory, kAcpiBase + 64);  // the root pointer stands at the very start
  auto facs = area.Add(MakeFacs());
  if (!facs.ok()) return facs;
  auto dsdt = area.Add(kDsdtAml);
  if (!dsdt.ok()) return dsdt;
  std::vector<Gpa> entries;
  for (const auto& table : {MakeFadt(*facs, *dsdt), MakeMadt(machine), MakeMcfg(), MakeSsdt(machine)}) {
    auto at = area.Add(table);
    if (!at.ok()) return at;
    entries.push_back(*at);
  }
  auto xsdt = area.Add(MakeXsdt(entries));
  if (!xsdt.ok()) return xsdt;
  const std::vector<uint8_t> rsdp = MakeRsdp(*xsdt);
  if (auto written = memory.Write(kAcpiBase, std::as_bytes(std::span(rsdp))); !written.ok()) return written.error();
  return kAcpiBase;
}

}  // namespace bulkhead::runner
