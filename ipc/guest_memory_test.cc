// SPDX-License-Identifier: Apache-2.0
#include "ipc/guest_memory.h"

#include <gtest/gtest.h>

#include <array>

namespace bulkhead {
namespace {

constexpr uint64_t kPage = 4096;

// Two regions that touch, and a third after a hole.
GuestMemory MakeMemory() {
  const OwnFd file = OrThrow(MakeSealedMemory("test-memory", 3 * kPage));
  const std::array<MemoryRegion, 3> regions{
      {{Gpa{0}, kPage, 0}, {Gpa{kPage}, kPage, 2 * kPage}, {Gpa{16 * kPage}, kPage, kPage}}};
  return OrThrow(GuestMemory::Map(file.get(), regions));
}

TEST(GuestMemory, CopiesAcrossRegionsThatTouch) {
  const GuestMemory memory = MakeMemory();
  const std::array<std::byte, 4> in{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(memory.Write(Gpa{kPage - 2}, in).ok());
  std::array<std::byte, 4> out{};
  ASSERT_TRUE(memory.Read(Gpa{kPage - 2}, out).ok());
  EXPECT_EQ(in, out);
  std::vector<iovec> pieces;
  ASSERT_TRUE(memory.Translate(Gpa{kPage - 2}, 4, pieces).ok());
  EXPECT_EQ(pieces.size(), 2u);
}

TEST(GuestMemory, RangesOutsideOfRamAreRefusedWhole) {
  const GuestMemory memory = MakeMemory();
  const std::array<std::byte, 8> data{std::byte{0xFF}};
  for (const uint64_t address :
       {2 * kPage - 4, 2 * kPage, 16 * kPage - 4, 17 * kPage - 4, ~uint64_t{0} - 3, ~uint64_t{0}}) {
    EXPECT_EQ(memory.Write(Gpa{address}, data).error().code, EFAULT) << address;
  }
  // Nothing of the refused writes arrived.
  EXPECT_EQ(OrThrow(memory.ReadObject<uint32_t>(Gpa{2 * kPage - 4})), 0u);
}

TEST(GuestMemory, ZeroBytesAreFineAnywhere) { EXPECT_TRUE(MakeMemory().Contains(Gpa{~uint64_t{0}}, 0)); }

TEST(GuestMemory, RingFieldsMustBeAligned) {
  const GuestMemory memory = MakeMemory();
  ASSERT_TRUE(memory.StoreRelease16(Gpa{2}, 0xABCD).ok());
  EXPECT_EQ(OrThrow(memory.LoadAcquire16(Gpa{2})), 0xABCD);
  EXPECT_FALSE(memory.LoadAcquire16(Gpa{3}).ok());
  EXPECT_FALSE(memory.StoreRelease16(Gpa{2 * kPage}, 1).ok());
}

TEST(GuestMemory, OverlappingOrUnalignedRegionsAreRefused) {
  const OwnFd file = OrThrow(MakeSealedMemory("test-memory", 2 * kPage));
  const std::array<MemoryRegion, 2> overlap{{{Gpa{0}, 2 * kPage, 0}, {Gpa{kPage}, kPage, 0}}};
  EXPECT_FALSE(GuestMemory::Map(file.get(), overlap).ok());
  const std::array<MemoryRegion, 1> ragged{{{Gpa{1}, kPage, 0}}};
  EXPECT_FALSE(GuestMemory::Map(file.get(), ragged).ok());
  const std::array<MemoryRegion, 1> wrapping{{{Gpa{~uint64_t{0} - kPage + 1}, 2 * kPage, 0}}};
  EXPECT_FALSE(GuestMemory::Map(file.get(), wrapping).ok());
}

TEST(SealedMemory, CanNeitherGrowNorShrink) {
  const OwnFd file = OrThrow(MakeSealedMemory("test-memory", kPage));
  EXPECT_NE(::ftruncate(file.get(), 2 * kPage), 0);
  EXPECT_NE(::ftruncate(file.get(), 0), 0);
}

// What is written in whatever way is marked, by the guest's addresses, and only while that is wanted.
TEST(GuestMemory, WritesAreLogged) {
  GuestMemory memory = MakeMemory();
  const OwnFd file = OrThrow(DirtyLog::Make("dirty-test", memory.end()));
  memory.LogWrites(OrThrow(DirtyLog::Map(file.get(), memory.end())));
  std::vector<DirtyLog> taker;
  taker.push_back(OrThrow(DirtyLog::Map(file.get(), memory.end())));
  const auto take = [&] { return taker.front().Take(0); };
  const std::array<std::byte, 4> data{};

  ASSERT_TRUE(memory.Write(Gpa{0}, data).ok());
  EXPECT_EQ(take(), 0u);
  ASSERT_TRUE(DirtyLog::TakePart().ok());
  ASSERT_TRUE(DirtyLog::SwitchOn(taker).ok());
  ASSERT_TRUE(memory.Write(Gpa{kPage - 2}, data).ok());
  EXPECT_EQ(take(), 3u);
  ASSERT_TRUE(memory.Fill(Gpa{16 * kPage}, 8, std::byte{1}).ok());
  EXPECT_EQ(take(), 1u << 16);
  ASSERT_TRUE(memory.StoreRelease16(Gpa{2}, 1).ok());
  EXPECT_EQ(take(), 1u);
  ASSERT_TRUE(memory.ReadObject<uint32_t>(Gpa{0}).ok());
  EXPECT_FALSE(memory.Write(Gpa{17 * kPage}, data).ok());
  EXPECT_EQ(take(), 0u);

  // Into pieces, up to the end of what was written, among others that are none of the guest's.
  std::array<std::byte, 64> own;
  std::vector<iovec> pieces{{own.data(), own.size()}};
  ASSERT_TRUE(memory.Translate(Gpa{kPage - 2}, 4, pieces).ok());
  ASSERT_TRUE(memory.Translate(Gpa{16 * kPage}, 4, pieces).ok());
  memory.NoteWritten(pieces, own.size() + 3);
  EXPECT_EQ(take(), 3u);
  memory.NoteWritten(pieces, own.size() + 4 + 1);
  EXPECT_EQ(take(), 3u | 1u << 16);
  memory.NoteWritten(Gpa{kPage}, 1);
  EXPECT_EQ(take(), 2u);

  taker.front().SwitchOff();
  ASSERT_TRUE(memory.Write(Gpa{0}, data).ok());
  memory.NoteWritten(pieces, 1000);
  EXPECT_EQ(take(), 0u);
}

}  // namespace
}  // namespace bulkhead
