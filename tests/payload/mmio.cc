// SPDX-License-Identifier: Apache-2.0
// Configuration space and device registers by memory: widths, unclaimed addresses, a BAR that moves and one
// not decoded. Needs any virtio function (the entropy device is there by default).
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

VirtioDevice g_device;

void Ecam() {
  const uint64_t base = EcamAddress(g_device.pci().slot, 0);
  for (unsigned offset = 0; offset < 0x100; offset += 8) {
    const uint32_t low = Load<uint32_t>(base + offset);
    const uint32_t high = Load<uint32_t>(base + offset + 4);
    for (unsigned byte = 0; byte < 4; ++byte) {
      if (!ExpectEqual("ecam", "byte", Load<uint8_t>(base + offset + byte), low >> 8 * byte & 0xFF)) return;
    }
    for (unsigned byte = 0; byte < 4; byte += 2) {
      if (!ExpectEqual("ecam", "word", Load<uint16_t>(base + offset + byte), low >> 8 * byte & 0xFFFF)) return;
    }
    if (!ExpectEqual("ecam", "qword", Load<uint64_t>(base + offset), uint64_t{high} << 32 | low)) return;
  }
  if (!ExpectEqual("ecam", "absent function", Load<uint32_t>(EcamAddress(31, 0)), 0xFFFF'FFFF)) return;
  Pass("ecam");
}

// The entropy of a device that is not set up does not change, so one whole read says what its parts must be.
bool RegistersAt(const char* name, uint64_t common) {
  Store<uint32_t>(common + kDeviceFeatureSelect, 1);
  if (!ExpectEqual(name, "dword written", Load<uint32_t>(common + kDeviceFeatureSelect), 1)) return false;
  if (!ExpectEqual(name, "VERSION_1", Load<uint32_t>(common + kDeviceFeature) & 1, 1)) return false;
  Store<uint16_t>(common + kQueueSelect, 0);
  uint8_t bytes[0x38];
  for (unsigned i = 0; i < sizeof bytes; ++i) bytes[i] = Load<uint8_t>(common + i);
  const auto part = [&bytes](unsigned offset, unsigned width) {
    uint64_t value = 0;
    __builtin_memcpy(&value, bytes + offset, width);
    return value;
  };
  for (unsigned i = 0; i < sizeof bytes; i += 2) {
    if (!ExpectEqual(name, "word", Load<uint16_t>(common + i), part(i, 2))) return false;
  }
  for (unsigned i = 0; i < sizeof bytes; i += 4) {
    if (!ExpectEqual(name, "dword", Load<uint32_t>(common + i), part(i, 4))) return false;
  }
  for (unsigned i = 0; i < sizeof bytes; i += 8) {
    if (!ExpectEqual(name, "qword", Load<uint64_t>(common + i), part(i, 8))) return false;
  }
  return true;
}

void Registers() {
  g_device.Reset();
  const uint64_t common = g_device.common();
  if (!RegistersAt("registers", common)) return;
  Store<uint64_t>(common + kQueueDescriptors, 0x1234'5678'9ABC'DE00);
  if (!ExpectEqual("registers", "qword written", Load<uint64_t>(common + kQueueDescriptors), 0x1234'5678'9ABC'DE00))
    return;
  Store<uint32_t>(common + kQueueDescriptors + 4, 7);
  if (!ExpectEqual("registers", "high dword written", Load<uint64_t>(common + kQueueDescriptors), 0x7'9ABC'DE00))
    return;
  g_device.Reset();
  if (!ExpectEqual("registers", "queue address after reset", Load<uint64_t>(common + kQueueDescriptors), 0)) return;
  Pass("registers");
}

void ExpectNothingAt(const char* name, uint64_t address) {
  Store<uint32_t>(address, 0);
  if (ExpectEqual(name, "byte", Load<uint8_t>(address), 0xFF) &&
      ExpectEqual(name, "word", Load<uint16_t>(address), 0xFFFF) &&
      ExpectEqual(name, "dword", Load<uint32_t>(address), 0xFFFF'FFFF) &&
      ExpectEqual(name, "qword", Load<uint64_t>(address), ~0ull)) {
    Pass(name);
  }
}

void Decode() {
  PciFunction& pci = g_device.pci();
  pci.SetMemoryDecode(false);
  ExpectNothingAt("decode-off", g_device.common());
  pci.SetMemoryDecode(true);
  if (RegistersAt("decode-on", g_device.common())) Pass("decode-on");
}

// By turns: to the 32-bit window and to another place in the 64-bit one, and back.
void Move() {
  PciFunction& pci = g_device.pci();
  const uint64_t home = pci.bar0;
  const uint64_t common = g_device.common() - home;
  const uint64_t places[] = {0xDFF0'0000, home + 256 * pci.bar0_bytes, home};
  uint64_t last = home;
  for (const uint64_t place : places) {
    pci.SetBar0(place);
    if (!RegistersAt("bar-move", place + common)) return;
    if (!ExpectEqual("bar-move", "the old place", Load<uint32_t>(last + common), 0xFFFF'FFFF)) return;
    last = place;
  }
  Pass("bar-move");
}

void Sizing() {
  const uint64_t bytes = g_device.pci().bar0_bytes;
  if (!Expect("bar-size", "not a power of two of at least 4 KiB", bytes >= 4096 && (bytes & (bytes - 1)) == 0)) return;
  if (Expect("bar-size", "BAR not aligned", g_device.pci().bar0 % bytes == 0)) Pass("bar-size");
}

}  // namespace

void Main() {
  ExpectNothingAt("unclaimed", 0xFED8'0000);
  if (!g_device.Find(kVirtioRng) && !g_device.Find(kVirtioBlock)) {
    Fail("registers", "no virtio function");
    return;
  }
  Sizing();
  Ecam();
  Registers();
  Decode();
  Move();
}
