// SPDX-License-Identifier: Apache-2.0
// bzImage headers, true and hostile: what is loaded where, and one line for what cannot be.
#include <gtest/gtest.h>

#include "vcpu-runner/boot/kernel.h"
#include "vcpu-runner/boot/memory_map.h"
#include "vcpu-runner/boot/test_kernels.h"

namespace bulkhead::runner {
namespace {

using namespace test;

class BzImage : public testing::Test {
 protected:
  Result<LoadedKernel> Load(std::optional<uint64_t> size_bytes = {}) {
    const OwnFd fd = FileOf(file_, size_bytes);
    auto image = Image::Open(fd.get(), "kernel 'vmlinuz'");
    if (!image.ok()) return image.error();
    return LoadKernel(*image, memory_, machine_);
  }
  // The error of a load that must fail: one line that names the file, and nothing in memory where kernels go.
  std::string Failure(std::optional<uint64_t> size_bytes = {}) {
    auto kernel = Load(size_bytes);
    if (kernel.ok()) return "it was loaded";
    EXPECT_TRUE(kernel.error().message.starts_with("kernel 'vmlinuz': ")) << kernel.error().message;
    EXPECT_EQ(kernel.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(OrThrow(memory_.ReadObject<uint64_t>(Gpa{kKernelBase})), 0u);
    return kernel.error().message;
  }
  void ExpectFailure(const std::string& part, std::optional<uint64_t> size_bytes = {}) {
    const std::string message = Failure(size_bytes);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }

  Bytes file_ = MakeBzImage();
  Machine machine_{.memory_bytes = 128 * kMiB};
  GuestMemory memory_ = MakeRam(machine_.memory_bytes);
};

TEST_F(BzImage, LoadsProtectedModeCodeAtOneMiB) {
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->protocol, LoadedKernel::Protocol::kLinux64);
  EXPECT_EQ(kernel->entry, kMiB + 0x200);
  EXPECT_EQ(kernel->end, 24 * kMiB);
  EXPECT_EQ(kernel->initrd_max, 0x7FFF'FFFFu);
  EXPECT_EQ(kernel->command_line_max, 2047u);
  Bytes code(kCodeBytes + 1);
  ASSERT_TRUE(memory_.Read(Gpa{kMiB}, code).ok());
  for (uint64_t i = 0; i < kCodeBytes; ++i) ASSERT_EQ(code[i], CodeAt(i)) << i;
  EXPECT_EQ(code[kCodeBytes], std::byte{0});
}

TEST_F(BzImage, CopiesItsHeaderAndNothingElseIntoTheZeroPage) {
  std::fill(file_.begin(), file_.begin() + kSetupSects, std::byte{0xEE});
  std::fill(file_.begin() + 0x26C, file_.begin() + kSetupBytes, std::byte{0xEE});
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  for (size_t i = 0; i < kernel->zero_page.size(); ++i) {
    const bool in_header = i >= kSetupSects && i < 0x26C;
    ASSERT_EQ(kernel->zero_page[i], in_header ? file_[i] : std::byte{0}) << i;
  }
}

TEST_F(BzImage, LongestHeaderDoesNotReachTheMemoryMap) {
  Put<uint8_t>(file_, kJump + 1, 0xFF);
  std::fill(file_.begin() + 0x26C, file_.begin() + kSetupBytes, std::byte{0xEE});
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->zero_page[0x28F], std::byte{0xEE});
  for (size_t i = 0x290; i < kernel->zero_page.size(); ++i) ASSERT_EQ(kernel->zero_page[i], std::byte{0}) << i;
}

TEST_F(BzImage, WithoutA64BitEntryItIsEnteredIn32BitMode) {
  Put<uint16_t>(file_, kXLoadFlags, 0);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->protocol, LoadedKernel::Protocol::kLinux32);
  EXPECT_EQ(kernel->entry, kMiB);
}

TEST_F(BzImage, OneThatIsNotRelocatableGoesWhereItSays) {
  Put<uint8_t>(file_, kRelocatable, 0);
  Put<uint32_t>(file_, kCode32Start, 0x40'0000);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->entry, 0x40'0200u);
  EXPECT_EQ(OrThrow(memory_.ReadObject<std::byte>(Gpa{0x40'0000})), CodeAt(0));
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint64_t>(Gpa{kMiB})), 0u);
}

TEST_F(BzImage, RelocatableOneIgnoresCode32StartAndIsToldWhereItIs) {
  Put<uint32_t>(file_, kCode32Start, 0xFFFF'FFFF);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(GetField<uint32_t>(kernel->zero_page, kCode32Start), kMiB);
}

TEST_F(BzImage, FixedAddressBelowOneMiBIsRefusedAsCorrupt) {
  Put<uint8_t>(file_, kRelocatable, 0);
  for (uint32_t address : {0u, 0x1000u, 0x7000u, 0xF'FFFFu}) {
    Put<uint32_t>(file_, kCode32Start, address);
    ExpectFailure("corrupt");
  }
}

TEST_F(BzImage, FixedAddressBeyondMemoryIsRefused) {
  Put<uint8_t>(file_, kRelocatable, 0);
  for (uint32_t address : {0x0800'0000u, 0x07FF'F000u, 0xC000'0000u, 0xFFFF'FFFFu}) {
    Put<uint32_t>(file_, kCode32Start, address);
    EXPECT_NE(Failure(), "it was loaded") << address;
  }
}

TEST_F(BzImage, NoSetupSectorsMeansFour) {
  Put<uint8_t>(file_, kSetupSects, 0);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(OrThrow(memory_.ReadObject<std::byte>(Gpa{kMiB})), CodeAt(0));
}

TEST_F(BzImage, SetupSectorsBeyondTheFileAreATruncatedFile) {
  Put<uint8_t>(file_, kSetupSects, 255);
  ExpectFailure("truncated");
  Put<uint8_t>(file_, kSetupSects, static_cast<uint8_t>(file_.size() / 512 - 1));
  Put<uint32_t>(file_, kSysSize, 0);
  file_.resize(file_.size() / 512 * 512);  // not one byte of code
  ExpectFailure("truncated");
}

TEST_F(BzImage, SysSizeBeyondTheFileIsATruncatedFile) {
  Put<uint32_t>(file_, kSysSize, kCodeBytes / 16 + 1);
  ExpectFailure("truncated");
  Put<uint32_t>(file_, kSysSize, 0xFFFF'FFFF);
  ExpectFailure("(14864 of 68719479280 bytes)");
}

TEST_F(BzImage, LastParagraphMayBeShort) { EXPECT_TRUE(Load(file_.size() - 15).ok()); }

TEST_F(BzImage, CodeBeyondSysSizeIsLoadedToo) {
  Put<uint32_t>(file_, kSysSize, 0);
  ASSERT_TRUE(Load().ok());
  EXPECT_EQ(OrThrow(memory_.ReadObject<std::byte>(Gpa{kMiB + kCodeBytes - 1})), CodeAt(kCodeBytes - 1));
}

TEST_F(BzImage, TruncatedAnywhereIsRefused) {
  for (uint64_t size : {uint64_t{1}, uint64_t{2}, uint64_t{0x1F1}, uint64_t{0x202}, uint64_t{0x205}}) {
    ExpectFailure("neither a bzImage nor an ELF kernel", size);
  }
  for (uint64_t size : {0x206u, 0x208u, 0x238u, 0x263u, 0x267u}) ExpectFailure("ends inside its header", size);
  for (uint64_t size : {uint64_t{0x268}, uint64_t{0x26B}, uint64_t{0x26C}, uint64_t{0x290}, uint64_t{1024},
                        kSetupBytes - 1, kSetupBytes, kSetupBytes + 1, kSetupBytes + 0x200, file_.size() - 16}) {
    ExpectFailure("truncated", size);
  }
}

TEST_F(BzImage, EveryLengthIsEitherRefusedOrWhole) {
  for (uint64_t size = 1; size < file_.size() - 15; ++size) ASSERT_FALSE(Load(size).ok()) << size;
}

TEST_F(BzImage, WithoutItsMagicItIsNoKernel) {
  Put<uint32_t>(file_, kHeaderMagic, 0x5372'6449);
  ExpectFailure("neither a bzImage nor an ELF kernel");
}

TEST_F(BzImage, GzipFileIsNamedAsOne) {
  Put<uint32_t>(file_, kHeaderMagic, 0);
  Put<uint16_t>(file_, 0, 0x8B1F);
  ExpectFailure("gunzip");
}

TEST_F(BzImage, OldProtocolsAreRefused) {
  for (uint16_t version : {0x0000, 0x0200, 0x0209, 0x020B}) {
    Put<uint16_t>(file_, kVersion, version);
    ExpectFailure("older than Linux 3.8");
  }
  Put<uint16_t>(file_, kVersion, 0x020C);
  EXPECT_TRUE(Load().ok());
}

TEST_F(BzImage, HeaderThatEndsBeforeInitSizeIsRefusedWhateverItsVersion) {
  for (uint8_t displacement : {0, 1, 0x40, 0x61}) {
    Put<uint8_t>(file_, kJump + 1, displacement);
    ExpectFailure("older than Linux 3.8");
  }
  Put<uint8_t>(file_, kJump + 1, 0x62);
  EXPECT_TRUE(Load().ok());
}

TEST_F(BzImage, ZImageIsRefused) {
  Put<uint8_t>(file_, kLoadFlags, 0xFE);
  ExpectFailure("zImage");
}

TEST_F(BzImage, NeedsRoomForInitSizeAboveItsPreferredAddress) {
  Put<uint32_t>(file_, kInitSize, 112 * kMiB);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->end, machine_.memory_bytes);
}

TEST_F(BzImage, InitSizeBeyondMemoryAsksForMore) {
  Put<uint32_t>(file_, kInitSize, 112 * kMiB + 1);
  ExpectFailure("needs 129 MiB of memory to start, and the guest has 128 MiB: give it more with -m");
  Put<uint32_t>(file_, kInitSize, 0x7FFF'FFFF);
  ExpectFailure("needs 2064 MiB of memory to start, and the guest has 128 MiB: give it more with -m");
}

TEST_F(BzImage, WhatNoGuestCanHaveIsCorruptNotAskedFor) {
  const auto expect_corrupt = [this](const char* field) {
    SCOPED_TRACE(field);
    const std::string message = Failure();
    EXPECT_NE(message.find("corrupt"), std::string::npos) << message;
    EXPECT_EQ(message.find("-m"), std::string::npos) << message;
  };
  Put<uint32_t>(file_, kInitSize, 0xFFFF'FFFF);
  expect_corrupt("init_size");
  file_ = MakeBzImage();
  for (uint64_t address : {3 * kGiB, 4 * kGiB, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 8 * kMiB + 1}) {
    Put<uint64_t>(file_, kPrefAddress, address);
    expect_corrupt("pref_address");
  }
}

TEST_F(BzImage, FileLargerThanMemoryIsRefused) {
  Put<uint32_t>(file_, kInitSize, 0);
  Put<uint64_t>(file_, kPrefAddress, 0);
  ExpectFailure("needs 129 MiB of memory to start, and the guest has 128 MiB", 127 * kMiB + kSetupBytes + 1);
  EXPECT_NE(Failure(uint64_t{1} << 40), "it was loaded");
}

TEST_F(BzImage, EndCoversItsCodeWhereInitSizeIsLess) {
  Put<uint32_t>(file_, kInitSize, 0);
  Put<uint64_t>(file_, kPrefAddress, 0);
  auto kernel = Load();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->end, kMiB + kCodeBytes);
}

TEST_F(BzImage, MemoryAboveTheHoleDoesNotCount) {
  machine_.memory_bytes = 6 * kGiB;
  memory_ = MakeRam(machine_.memory_bytes);
  Put<uint64_t>(file_, kPrefAddress, 3 * kGiB - 8 * kMiB);
  EXPECT_TRUE(Load().ok());
  memory_ = MakeRam(machine_.memory_bytes);
  Put<uint64_t>(file_, kPrefAddress, 3 * kGiB - 8 * kMiB + 1);
  EXPECT_NE(Failure(), "it was loaded");
}

TEST_F(BzImage, FileThatShrinksWhileItIsReadIsAnError) {
  const OwnFd fd = FileOf(file_);
  auto image = Image::Open(fd.get(), "kernel 'vmlinuz'");
  ASSERT_TRUE(image.ok());
  ASSERT_EQ(::ftruncate(fd.get(), kSetupBytes + 5000), 0);
  auto kernel = LoadKernel(*image, memory_, machine_);
  ASSERT_FALSE(kernel.ok());
  EXPECT_EQ(kernel.error().message, "kernel 'vmlinuz': the file became shorter while it was read");
}

}  // namespace
}  // namespace bulkhead::runner
