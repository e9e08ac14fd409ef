// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/acpi.h"

namespace payload {
namespace {

constexpr uint64_t kRootPointerOfZeroPage = 0x070;
constexpr uint64_t kHeaderBytes = 36;

bool SumsToZero(uint64_t address, uint64_t bytes) {
  uint8_t sum = 0;
  for (uint64_t i = 0; i < bytes; ++i) sum = static_cast<uint8_t>(sum + Load<uint8_t>(address + i));
  return sum == 0;
}

bool HasSignature(uint64_t address, const char* signature, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (Load<char>(address + i) != signature[i]) return false;
  }
  return true;
}

bool CheckTable(const char* name, uint64_t table) {
  const uint32_t bytes = Load<uint32_t>(table + 4);
  if (bytes < kHeaderBytes || bytes > 0x10'0000) return Fail(name, "ACPI table with an impossible length");
  return Expect(name, "ACPI table with a wrong checksum", SumsToZero(table, bytes));
}

}  // namespace

uint64_t FindAcpiTable(const char* name, const char* signature) {
  const uint64_t root = Load<uint64_t>(ZeroPage() + kRootPointerOfZeroPage);
  if (!Expect(name, "zero page has no ACPI root pointer", root != 0)) return 0;
  if (!Expect(name, "root pointer's signature", HasSignature(root, "RSD PTR ", 8))) return 0;
  if (!Expect(name, "root pointer's checksum", SumsToZero(root, 20))) return 0;
  if (!Expect(name, "root pointer's revision", Load<uint8_t>(root + 15) >= 2)) return 0;
  if (!Expect(name, "root pointer's extended checksum", SumsToZero(root, Load<uint32_t>(root + 20)))) return 0;
  const uint64_t xsdt = Load<uint64_t>(root + 24);
  if (!Expect(name, "XSDT's signature", HasSignature(xsdt, "XSDT", 4)) || !CheckTable(name, xsdt)) return 0;
  uint64_t found = 0;
  for (uint64_t at = xsdt + kHeaderBytes; at < xsdt + Load<uint32_t>(xsdt + 4); at += 8) {
    const uint64_t table = Load<uint64_t>(at);
    if (!CheckTable(name, table)) return 0;
    if (HasSignature(table, signature, 4)) found = table;
  }
  Expect(name, "table not found", found != 0);
  return found;
}

}  // namespace payload
