// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/pci_config.h"

#include <gtest/gtest.h>

#include <vector>

namespace bulkhead::device {
namespace {

constexpr uint64_t kBarSize = 0x8000;
constexpr uint64_t kBarAddress = 0x1'4000'8000;

class PciConfigSpaceTest : public testing::Test {
 protected:
  PciConfigSpace space_{{.vendor_id = 0x1AF4,
                         .device_id = 0x1042,
                         .revision = 1,
                         .class_code = 0x018000,
                         .subsystem_vendor_id = 0x1AF4,
                         .subsystem_id = 0x1042},
                        kBarSize,
                        kBarAddress};
};

TEST_F(PciConfigSpaceTest, IdentityIsWhereTheHeaderHasIt) {
  EXPECT_EQ(space_.Read(0x00, 4), 0x1042'1AF4u);
  EXPECT_EQ(space_.Read(0x08, 4), 0x0180'0001u);
  EXPECT_EQ(space_.Read(0x0E, 1), 0u) << "type 0, one function";
  EXPECT_EQ(space_.Read(0x2C, 4), 0x1042'1AF4u);
  EXPECT_EQ(space_.Read(0x3D, 1), 0u) << "no INTx pin";
}

TEST_F(PciConfigSpaceTest, IdentityCannotBeWritten) {
  for (uint64_t offset : {0x00, 0x08, 0x2C, 0x34}) {
    const uint64_t before = space_.Read(offset, 4);
    space_.Write(offset, 4, ~before);
    EXPECT_EQ(space_.Read(offset, 4), before) << offset;
  }
}

TEST_F(PciConfigSpaceTest, BarTellsItsSizeAndKeepsItsType) {
  EXPECT_EQ(space_.Read(0x10, 4), 0x4000'8004u) << "64-bit, not prefetchable";
  EXPECT_EQ(space_.Read(0x14, 4), 1u);
  space_.Write(0x10, 4, 0xFFFF'FFFF);
  space_.Write(0x14, 4, 0xFFFF'FFFF);
  EXPECT_EQ(space_.Read(0x10, 4), 0xFFFF'8004u);
  EXPECT_EQ(space_.Read(0x14, 4), 0xFFFF'FFFFu);
  space_.Write(0x10, 4, 0xC000'1234);
  space_.Write(0x14, 4, 0x2);
  EXPECT_EQ(space_.Decode().bar0_address, 0x2'C000'0000u);
  for (uint64_t offset = 0x18; offset < 0x28; offset += 4) {
    space_.Write(offset, 4, 0xFFFF'FFFF);
    EXPECT_EQ(space_.Read(offset, 4), 0u) << "no other BAR";
  }
}

TEST_F(PciConfigSpaceTest, MemoryDecodingStartsOff) {
  EXPECT_FALSE(space_.Decode().memory_enabled);
  EXPECT_EQ(space_.Decode().bar0_address, kBarAddress);
  space_.Write(0x04, 2, 0xFFFF);
  EXPECT_TRUE(space_.Decode().memory_enabled);
  EXPECT_EQ(space_.Read(0x04, 2), 0x0546u) << "the other bits have nothing behind them";
}

TEST_F(PciConfigSpaceTest, CapabilitiesFormAList) {
  const std::vector<uint8_t> body{0xAB, 0xCD, 0xEF};
  const std::vector<uint8_t> writable{0x00, 0x0F, 0x00};
  const uint8_t first = space_.AddCapability(0x09, body, writable);
  const uint8_t second = space_.AddCapability(0x10, body);
  EXPECT_NE(space_.Read(0x06, 2) & 0x10, 0u);
  EXPECT_EQ(space_.Read(0x34, 1), first);
  EXPECT_EQ(space_.Read(first + 1u, 1), second);
  EXPECT_EQ(space_.Read(second + 1u, 1), 0u);
  EXPECT_EQ(first % 4 + second % 4, 0);
  space_.Write(first, 4, 0);
  space_.Write(first + 4u, 1, 0);
  EXPECT_EQ(space_.Read(first, 4), 0xC0AB'0009u | uint32_t{second} << 8);
}

TEST_F(PciConfigSpaceTest, AnyOffsetAndWidthIsSafe) {
  for (uint64_t offset = 0; offset < 4096; ++offset) {
    for (uint8_t width : {1, 2, 4, 8}) {
      space_.Write(offset, width, ~uint64_t{0});
      (void)space_.Read(offset, width);
    }
  }
  EXPECT_EQ(space_.Read(0xFE, 4), 0u) << "where the capabilities end and extended space begins";
  EXPECT_EQ(space_.Read(0x100, 4), 0u) << "no extended capability";
}

TEST_F(PciConfigSpaceTest, RestoreTakesWritableBitsOnly) {
  space_.Write(0x04, 2, 0x0006);
  space_.Write(0x10, 4, 0xD000'0000);
  std::vector<uint8_t> saved(space_.Save().begin(), space_.Save().end());
  saved[0x00] = 0x86;
  saved[0x10] |= 0x01;
  PciConfigSpace other({.vendor_id = 0x1AF4}, kBarSize, 0);
  ASSERT_TRUE(other.Restore(saved).ok());
  EXPECT_EQ(other.Read(0x00, 2), 0x1AF4u);
  EXPECT_EQ(other.Read(0x10, 4), 0xD000'0004u);
  EXPECT_TRUE(other.Decode().memory_enabled);
  saved.pop_back();
  EXPECT_FALSE(other.Restore(saved).ok());
}

}  // namespace
}  // namespace bulkhead::device
