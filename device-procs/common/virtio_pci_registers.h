// SPDX-License-Identifier: Apache-2.0
// What a driver does with the registers of a virtio-pci function (virtio 1.2 §3.1, §4.1), for tests; how they are
// reached is for a derived class to say. One thread.
#pragma once

#include "device-procs/common/device_model.h"
#include "device-procs/common/virtio_pci.h"
#include "ipc/platform.h"

namespace bulkhead::device::test {

inline constexpr uint8_t kAcknowledge = 1;
inline constexpr uint8_t kDriver = 2;
inline constexpr uint8_t kDriverOk = 4;
inline constexpr uint8_t kFeaturesOk = 8;
inline constexpr uint8_t kNeedsReset = 64;

inline constexpr uint64_t kVersion1 = FeatureBit(32);
inline constexpr uint64_t kEventIndex = FeatureBit(29);
inline constexpr uint64_t kIndirectFeature = FeatureBit(28);

class FunctionRegisters {
 public:
  virtual ~FunctionRegisters() = default;

  uint64_t ReadConfig(uint64_t offset, uint8_t width) { return Read(VirtioPci::kConfigSpace, offset, width); }
  WriteEffect WriteConfig(uint64_t offset, uint8_t width, uint64_t value) {
    return Write(VirtioPci::kConfigSpace, offset, width, value);
  }
  uint64_t ReadBar(uint64_t offset, uint8_t width) { return Read(VirtioPci::kBar0, offset, width); }
  WriteEffect WriteBar(uint64_t offset, uint8_t width, uint64_t value) {
    return Write(VirtioPci::kBar0, offset, width, value);
  }

  // Offset of the nth capability with this id, 0 if there is none.
  uint8_t FindCapability(uint8_t id, unsigned nth = 0) {
    for (auto at = static_cast<uint8_t>(ReadConfig(0x34, 1)); at != 0;
         at = static_cast<uint8_t>(ReadConfig(at + 1u, 1))) {
      if (ReadConfig(at, 1) == id && nth-- == 0) return at;
    }
    return 0;
  }

  uint8_t Status() { return static_cast<uint8_t>(ReadBar(0x14, 1)); }
  void SetStatus(uint8_t status) { WriteBar(0x14, 1, status); }
  uint64_t DeviceFeatures() {
    WriteBar(0x00, 4, 1);
    const uint64_t high = ReadBar(0x04, 4);
    WriteBar(0x00, 4, 0);
    return high << 32 | ReadBar(0x04, 4);
  }
  // Reset, then up to FEATURES_OK; false where the device does not take the features.
  bool Negotiate(uint64_t features) {
    SetStatus(0);
    SetStatus(kAcknowledge);
    SetStatus(kAcknowledge | kDriver);
    WriteBar(0x10, 2, 0);
    for (uint32_t half = 0; half < 2; ++half) {
      WriteBar(0x08, 4, half);
      WriteBar(0x0C, 4, features >> (32 * half));
    }
    SetStatus(kAcknowledge | kDriver | kFeaturesOk);
    return (Status() & kFeaturesOk) != 0;
  }
  void SetUpQueue(uint16_t index, const QueueLayout& layout) {
    WriteBar(0x16, 2, index);
    WriteBar(0x18, 2, layout.size);
    WriteBar(0x1A, 2, index + 1u);
    WriteBar(0x20, 8, layout.descriptors.value);
    // The halves by themselves, as some drivers write them.
    WriteBar(0x28, 4, layout.available.value);
    WriteBar(0x2C, 4, layout.available.value >> 32);
    WriteBar(0x30, 4, layout.used.value);
    WriteBar(0x34, 4, layout.used.value >> 32);
    WriteBar(0x1C, 2, 1);
  }
  void GoLive() { SetStatus(kAcknowledge | kDriver | kFeaturesOk | kDriverOk); }

  void EnableMsix(uint16_t vectors) {
    WriteConfig(FindCapability(0x11) + 2u, 2, 0x8000);
    for (uint16_t vector = 0; vector < vectors; ++vector) Unmask(vector);
  }
  WriteEffect Mask(uint16_t vector) { return WriteBar(virtio_pci::kMsixTable + 16u * vector + 12, 4, 1); }
  WriteEffect Unmask(uint16_t vector) { return WriteBar(virtio_pci::kMsixTable + 16u * vector + 12, 4, 0); }

 protected:
  virtual uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) = 0;
  virtual WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) = 0;
};

}  // namespace bulkhead::device::test
