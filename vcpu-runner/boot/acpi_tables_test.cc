// SPDX-License-Identifier: Apache-2.0
// ACPI tables as a guest finds them: from the root pointer, by checksum, length and signature.
#include "vcpu-runner/boot/acpi_tables.h"

#include <gtest/gtest.h>

#include <map>

#include "vcpu-runner/boot/memory_map.h"
#include "vcpu-runner/boot/test_kernels.h"

namespace bulkhead::runner {
namespace {

using namespace test;

uint8_t Sum(std::span<const std::byte> bytes) {
  uint8_t sum = 0;
  for (const std::byte byte : bytes) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(byte));
  return sum;
}

template <typename T>
T Field(std::span<const std::byte> table, size_t offset) {
  T value{};
  EXPECT_LE(offset + sizeof value, table.size());
  if (offset + sizeof value <= table.size()) std::memcpy(&value, table.data() + offset, sizeof value);
  return value;
}

std::string Signature(std::span<const std::byte> table) {
  return {reinterpret_cast<const char*>(table.data()), table.size() < 4 ? 0u : 4u};
}

class AcpiTables : public testing::Test {
 protected:
  void Write(Machine machine) {
    machine_ = machine;
    memory_ = MakeRam(machine.memory_bytes);
    auto rsdp = WriteAcpiTables(memory_, machine);
    ASSERT_TRUE(rsdp.ok()) << rsdp.error().message;
    rsdp_ = *rsdp;
    tables_.clear();
    const Bytes root = ReadBytes(rsdp_, 36);
    const Bytes xsdt = ReadTable(Gpa{Field<uint64_t>(root, 24)});
    for (size_t at = 36; at < xsdt.size(); at += 8) {
      Bytes table = ReadTable(Gpa{Field<uint64_t>(xsdt, at)});
      tables_[Signature(table)] = std::move(table);
    }
  }

  Bytes ReadBytes(Gpa address, uint64_t size) {
    EXPECT_GE(address.value, kAcpiBase.value);
    EXPECT_LE(address.value + size, kAcpiBase.value + kAcpiSize);
    Bytes bytes(size);
    EXPECT_TRUE(memory_.Read(address, bytes).ok());
    return bytes;
  }
  // A table by its own length, inside the ACPI area and sound.
  Bytes ReadTable(Gpa address) {
    const auto length = Field<uint32_t>(ReadBytes(address, 36), 4);
    EXPECT_GE(length, 36u);
    if (length < 36 || length > kAcpiSize) return Bytes(36);
    Bytes table = ReadBytes(address, length);
    EXPECT_EQ(Sum(table), 0) << Signature(table);
    return table;
  }

  struct Entry {
    uint8_t type;
    Bytes bytes;
  };
  std::vector<Entry> MadtEntries() {
    std::vector<Entry> entries;
    const Bytes& madt = tables_["APIC"];
    for (size_t at = 44; at + 2 <= madt.size();) {
      const auto length = Field<uint8_t>(madt, at + 1);
      EXPECT_GE(length, 2);
      EXPECT_LE(at + length, madt.size());
      if (length < 2 || at + length > madt.size()) break;
      entries.push_back({Field<uint8_t>(madt, at), Bytes(madt.begin() + at, madt.begin() + at + length)});
      at += length;
    }
    return entries;
  }

  Machine machine_;
  GuestMemory memory_ = MakeRam(4096);
  Gpa rsdp_;
  std::map<std::string, Bytes> tables_;
};

TEST_F(AcpiTables, RootPointerIsWhereSystemsLookAndSumsToZeroTwice) {
  Write({.memory_bytes = 128 * kMiB});
  EXPECT_EQ(rsdp_.value % 16, 0u);
  EXPECT_GE(rsdp_.value, 0xE'0000u);
  EXPECT_LT(rsdp_.value, 0x10'0000u);
  const Bytes root = ReadBytes(rsdp_, 36);
  EXPECT_EQ(std::memcmp(root.data(), "RSD PTR ", 8), 0);
  EXPECT_EQ(Sum(std::span(root).first(20)), 0);
  EXPECT_EQ(Sum(root), 0);
  EXPECT_EQ(Field<uint8_t>(root, 15), 2);    // revision: there is an XSDT
  EXPECT_EQ(Field<uint32_t>(root, 16), 0u);  // no RSDT
  EXPECT_EQ(Field<uint32_t>(root, 20), 36u);
  EXPECT_EQ(Signature(ReadTable(Gpa{Field<uint64_t>(root, 24)})), "XSDT");
}

TEST_F(AcpiTables, AllTablesAreThereForAnyMachine) {
  for (uint32_t vcpus : {1u, 64u}) {
    for (uint64_t memory : {16 * kMiB, 3 * kGiB, 6 * kGiB}) {
      Write({.memory_bytes = memory, .vcpu_count = vcpus});
      std::string names;
      for (const auto& [name, table] : tables_) names += name + " ";
      EXPECT_EQ(names, "APIC FACP MCFG SSDT ");
    }
  }
}

TEST_F(AcpiTables, TablesDoNotOverlap) {
  Write({.memory_bytes = 128 * kMiB, .vcpu_count = 64});
  const auto fadt = tables_["FACP"];
  const uint64_t xsdt = Field<uint64_t>(ReadBytes(rsdp_, 36), 24);
  std::map<uint64_t, uint64_t> ranges{{rsdp_.value, 36}, {Field<uint32_t>(fadt, 36), 64}};
  std::vector<uint64_t> starts{xsdt, Field<uint64_t>(fadt, 140)};
  const Bytes root = ReadTable(Gpa{xsdt});
  for (size_t at = 36; at < root.size(); at += 8) starts.push_back(Field<uint64_t>(root, at));
  for (uint64_t start : starts) ranges[start] = ReadTable(Gpa{start}).size();
  ASSERT_EQ(ranges.size(), 8u);
  uint64_t next = kAcpiBase.value;
  for (const auto& [start, size] : ranges) {
    EXPECT_GE(start, next);
    next = start + size;
  }
}

TEST_F(AcpiTables, FadtDescribesFixedHardware) {
  Write({.memory_bytes = 128 * kMiB});
  const Bytes& fadt = tables_["FACP"];
  ASSERT_EQ(fadt.size(), 276u);  // §5.2.9, revision 6
  EXPECT_EQ(Field<uint8_t>(fadt, 8), 6);
  EXPECT_EQ(Field<uint16_t>(fadt, 46), 9);       // SCI_INT
  EXPECT_EQ(Field<uint32_t>(fadt, 48), 0u);      // SMI_CMD: ACPI mode cannot be left
  EXPECT_EQ(Field<uint32_t>(fadt, 56), 0x600u);  // PM1a_EVT_BLK
  EXPECT_EQ(Field<uint32_t>(fadt, 64), 0x604u);  // PM1a_CNT_BLK
  EXPECT_EQ(Field<uint32_t>(fadt, 76), 0x608u);  // PM_TMR_BLK
  EXPECT_EQ(Field<uint8_t>(fadt, 88), 4);
  EXPECT_EQ(Field<uint8_t>(fadt, 89), 2);
  EXPECT_EQ(Field<uint8_t>(fadt, 91), 4);
  EXPECT_EQ(Field<uint32_t>(fadt, 112) & (1u << 10 | 1u << 8), 1u << 10 | 1u << 8);  // reset register, 32-bit timer
  EXPECT_EQ(Field<uint32_t>(fadt, 112) & 1u << 20, 0u);                              // not hardware-reduced
  EXPECT_EQ(Field<uint8_t>(fadt, 116), 1);                                           // reset register: an I/O port
  EXPECT_EQ(Field<uint64_t>(fadt, 120), 0xCF9u);
  EXPECT_EQ(Field<uint8_t>(fadt, 128), 6);  // RESET_VALUE
  EXPECT_EQ(Field<uint64_t>(fadt, 152), 0x600u);
  EXPECT_EQ(Field<uint64_t>(fadt, 176), 0x604u);
  EXPECT_EQ(Field<uint64_t>(fadt, 212), 0x608u);
  EXPECT_EQ(std::memcmp(fadt.data() + 268, "BULKHEAD", 8), 0);
}

TEST_F(AcpiTables, FadtPointsToDsdtAndFacs) {
  Write({.memory_bytes = 128 * kMiB});
  const Bytes& fadt = tables_["FACP"];
  const Bytes dsdt = ReadTable(Gpa{Field<uint64_t>(fadt, 140)});
  EXPECT_EQ(Signature(dsdt), "DSDT");
  EXPECT_EQ(Field<uint8_t>(dsdt, 8), 2);  // 64-bit integers
  EXPECT_EQ(Field<uint32_t>(fadt, 40), Field<uint64_t>(fadt, 140));
  const Gpa facs{Field<uint32_t>(fadt, 36)};
  EXPECT_EQ(facs.value % 64, 0u);
  const Bytes bytes = ReadBytes(facs, 64);
  EXPECT_EQ(Signature(bytes), "FACS");
  EXPECT_EQ(Field<uint32_t>(bytes, 4), 64u);
  EXPECT_EQ(Field<uint64_t>(fadt, 132), 0u);  // X_FIRMWARE_CTRL: only one of the two may be set
}

TEST_F(AcpiTables, MadtHasOneEnabledLocalApicForEachVcpu) {
  for (uint32_t vcpus = 1; vcpus <= platform::kMaxVcpus; ++vcpus) {
    Write({.memory_bytes = 16 * kMiB, .vcpu_count = vcpus});
    EXPECT_EQ(Field<uint32_t>(tables_["APIC"], 36), 0xFEE0'0000u);
    uint32_t next = 0;
    for (const Entry& entry : MadtEntries()) {
      if (entry.type != 0) continue;
      ASSERT_EQ(entry.bytes.size(), 8u);
      EXPECT_EQ(Field<uint8_t>(entry.bytes, 2), next);
      EXPECT_EQ(Field<uint8_t>(entry.bytes, 3), next);
      EXPECT_EQ(Field<uint32_t>(entry.bytes, 4), 1u);
      ++next;
    }
    ASSERT_EQ(next, vcpus);
  }
}

TEST_F(AcpiTables, MadtHasTheIoApic) {
  Write({.memory_bytes = 128 * kMiB, .vcpu_count = 3});
  int count = 0;
  for (const Entry& entry : MadtEntries()) {
    if (entry.type != 1) continue;
    ++count;
    ASSERT_EQ(entry.bytes.size(), 12u);
    EXPECT_EQ(Field<uint32_t>(entry.bytes, 4), 0xFEC0'0000u);
    EXPECT_EQ(Field<uint32_t>(entry.bytes, 8), 0u);  // from GSI 0
  }
  EXPECT_EQ(count, 1);
}

TEST_F(AcpiTables, MadtOverridesTheTimerAndMakesTheSciLevel) {
  Write({.memory_bytes = 128 * kMiB});
  std::map<uint8_t, std::pair<uint32_t, uint16_t>> overrides;
  for (const Entry& entry : MadtEntries()) {
    if (entry.type != 2) continue;
    ASSERT_EQ(entry.bytes.size(), 10u);
    EXPECT_EQ(Field<uint8_t>(entry.bytes, 2), 0);  // ISA
    overrides[Field<uint8_t>(entry.bytes, 3)] = {Field<uint32_t>(entry.bytes, 4), Field<uint16_t>(entry.bytes, 8)};
  }
  ASSERT_EQ(overrides.size(), 2u);
  EXPECT_EQ(overrides[0], (std::pair<uint32_t, uint16_t>{2, 0}));
  EXPECT_EQ(overrides[9], (std::pair<uint32_t, uint16_t>{9, 0xD}));  // level, active high
}

TEST_F(AcpiTables, McfgNamesConfigurationSpaceOfBusZero) {
  Write({.memory_bytes = 128 * kMiB});
  const Bytes& mcfg = tables_["MCFG"];
  ASSERT_EQ(mcfg.size(), 60u);
  EXPECT_EQ(Field<uint64_t>(mcfg, 44), 0xE000'0000u);
  EXPECT_EQ(Field<uint16_t>(mcfg, 52), 0);  // segment
  EXPECT_EQ(Field<uint8_t>(mcfg, 54), 0);
  EXPECT_EQ(Field<uint8_t>(mcfg, 55), 0);
}

TEST_F(AcpiTables, SsdtPlacesTheHighWindowAboveRam) {
  for (uint64_t memory : {128 * kMiB, 3 * kGiB, 3 * kGiB + 4096, 6 * kGiB}) {
    Write({.memory_bytes = memory});
    std::map<std::string, uint64_t> names;
    const Bytes& ssdt = tables_["SSDT"];
    for (size_t at = 36; at + 14 <= ssdt.size(); at += 14) {
      EXPECT_EQ(Field<uint8_t>(ssdt, at), 0x08);
      EXPECT_EQ(Field<uint8_t>(ssdt, at + 5), 0x0E);
      names[Signature(std::span(ssdt).subspan(at + 1, 4))] = Field<uint64_t>(ssdt, at + 6);
    }
    ASSERT_EQ(names.size(), 3u);
    const auto regions = platform::RamRegions(memory);
    EXPECT_GE(names["MMB_"], regions.back().base.value + regions.back().size_bytes);
    EXPECT_GE(names["MMB_"], 4 * kGiB);
    EXPECT_EQ(names["MMT_"] - names["MMB_"] + 1, names["MML_"]);
  }
}

TEST_F(AcpiTables, MoreThanTheirAreaHoldsIsAnErrorAndDoesNotReachTheKernel) {
  memory_ = MakeRam(128 * kMiB);
  auto rsdp = WriteAcpiTables(memory_, {.memory_bytes = 128 * kMiB, .vcpu_count = 20'000});
  ASSERT_FALSE(rsdp.ok());
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint64_t>(Gpa{kKernelBase})), 0u);
}

}  // namespace
}  // namespace bulkhead::runner
