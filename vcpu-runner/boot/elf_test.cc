// SPDX-License-Identifier: Apache-2.0
// ELF kernels, true and hostile.
#include <gtest/gtest.h>

#include <cstddef>

#include "vcpu-runner/boot/kernel.h"
#include "vcpu-runner/boot/memory_map.h"
#include "vcpu-runner/boot/test_kernels.h"

namespace bulkhead::runner {
namespace {

using namespace test;
using Protocol = LoadedKernel::Protocol;

constexpr uint64_t kHuge = ~uint64_t{0};

class ElfKernel : public testing::Test {
 protected:
  Result<LoadedKernel> Load(const Bytes& file, std::optional<uint64_t> size_bytes = {}) {
    const OwnFd fd = FileOf(file, size_bytes);
    auto image = Image::Open(fd.get(), "kernel 'vmlinux'");
    if (!image.ok()) return image.error();
    return LoadKernel(*image, memory_, machine_);
  }
  void ExpectFailure(const Bytes& file, const std::string& part, std::optional<uint64_t> size_bytes = {}) {
    auto kernel = Load(file, size_bytes);
    ASSERT_FALSE(kernel.ok()) << "loaded, but must fail with: " << part;
    const std::string& message = kernel.error().message;
    EXPECT_TRUE(message.starts_with("kernel 'vmlinux': ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  template <typename T>
  void ExpectHeaderFailure(size_t offset, T value, const std::string& part) {
    Bytes file = MakeElf(kMiB);
    Put(file, offset, value);
    ExpectFailure(file, part);
  }
  template <typename T>
  void ExpectSegmentFailure(size_t offset, T value, const std::string& part) {
    ExpectHeaderFailure(ProgramHeader(0) + offset, value, part);
  }
  std::byte At(uint64_t address) { return OrThrow(memory_.ReadObject<std::byte>(Gpa{address})); }

  Machine machine_{.memory_bytes = 128 * kMiB};
  GuestMemory memory_ = MakeRam(machine_.memory_bytes);
};

TEST_F(ElfKernel, LoadsSegmentsAtTheirPhysicalAddresses) {
  const std::vector<ElfSegment> segments{{.address = 16 * kMiB, .fill = std::byte{1}},
                                         {.address = 2 * kMiB, .fill = std::byte{2}}};
  auto kernel = Load(MakeElf(16 * kMiB + 8, segments));
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->protocol, Protocol::kLinux64);
  EXPECT_EQ(kernel->entry, 16 * kMiB + 8);
  EXPECT_EQ(kernel->end, 16 * kMiB + 8192);
  EXPECT_EQ(At(16 * kMiB), std::byte{1});
  EXPECT_EQ(At(2 * kMiB + 4095), std::byte{2});
  EXPECT_EQ(At(2 * kMiB + 4096), std::byte{0});
}

TEST_F(ElfKernel, PvhNoteWinsOverTheEntryPoint) {
  for (const Bytes& note : {MakePvhNote(uint32_t{kMiB + 64}), MakePvhNote(uint64_t{kMiB + 64})}) {
    auto kernel = Load(MakeElf(kMiB, note));
    ASSERT_TRUE(kernel.ok()) << kernel.error().message;
    EXPECT_EQ(kernel->protocol, Protocol::kPvh);
    EXPECT_EQ(kernel->entry, kMiB + 64);
  }
}

TEST_F(ElfKernel, PvhNoteIsFoundBehindOthers) {
  const std::array<std::byte, 7> odd{};
  Bytes notes = MakeNote("GNU", 3, odd);
  for (const Bytes& next : {MakeNote("Linux", 18, odd), MakeNote("Xen", 6, odd), MakePvhNote(uint32_t{kMiB + 4})}) {
    notes.insert(notes.end(), next.begin(), next.end());
  }
  auto kernel = Load(MakeElf(kMiB, notes));
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->entry, kMiB + 4);
  EXPECT_EQ(kernel->protocol, Protocol::kPvh);
}

TEST_F(ElfKernel, HostileNotesAreNoPvhEntry) {
  const Bytes good = MakePvhNote(uint32_t{kMiB + 64});
  const auto expect_ignored = [this](const Bytes& notes) {
    auto kernel = Load(MakeElf(kMiB, notes));
    ASSERT_TRUE(kernel.ok()) << kernel.error().message;
    EXPECT_EQ(kernel->protocol, Protocol::kLinux64);
    EXPECT_EQ(kernel->entry, kMiB);
  };
  for (uint32_t size : {0u, 3u, 5u, 9u, 0x7FFF'FFFFu, 0x8000'0000u, 0xFFFF'FFF0u, 0xFFFF'FFFDu, 0xFFFF'FFFFu}) {
    SCOPED_TRACE(size);
    Bytes notes = good;
    Put(notes, offsetof(Elf64_Nhdr, n_namesz), size);
    expect_ignored(notes);
    notes = good;
    Put(notes, offsetof(Elf64_Nhdr, n_descsz), size);
    expect_ignored(notes);
    Put(notes, offsetof(Elf64_Nhdr, n_namesz), 0u - size);
    expect_ignored(notes);
  }
  for (size_t size = 1; size < good.size(); ++size) expect_ignored(Bytes(good.begin(), good.begin() + size));
  expect_ignored(MakeNote("Xem", 18, std::as_bytes(std::span("abc"))));
  expect_ignored(MakeNote("Xen", 17, std::as_bytes(std::span("abc"))));
  expect_ignored(MakePvhNote(uint32_t{0}));
  // A size that wraps to nothing when it is padded would have the next note found.
  for (const Elf64_Nhdr& wrapping : {Elf64_Nhdr{0xFFFF'FFFF, 0, 1}, Elf64_Nhdr{0, 0xFFFF'FFFF, 1}}) {
    Bytes notes(sizeof wrapping);
    Put(notes, 0, wrapping);
    notes.insert(notes.end(), good.begin(), good.end());
    expect_ignored(notes);
  }
}

TEST_F(ElfKernel, PvhEntryOutsideWhatIsLoadedIsRefused) {
  for (uint64_t entry : {uint64_t{1}, kMiB - 1, kMiB + 8192, 4 * kGiB + kMiB, kHuge}) {
    ExpectFailure(MakeElf(kMiB, MakePvhNote(entry)), "entry point");
  }
}

TEST_F(ElfKernel, NoteSegmentBeyondTheFileIsRefused) {
  const Bytes file = MakeElf(kMiB, MakePvhNote(uint32_t{kMiB}));
  for (uint64_t offset : {uint64_t{file.size()}, uint64_t{file.size() - 19}, kHuge, kHuge - 19}) {
    Bytes moved = file;
    Put(moved, ProgramHeader(1) + offsetof(Elf64_Phdr, p_offset), offset);
    ExpectFailure(moved, "truncated");
  }
}

TEST_F(ElfKernel, AbsurdlyLargeNoteSegmentIsNotRead) {
  Bytes file = MakeElf(kMiB, MakePvhNote(uint32_t{kMiB}));
  for (uint64_t size : {uint64_t{65537}, uint64_t{1} << 40, kHuge}) {
    Put(file, ProgramHeader(1) + offsetof(Elf64_Phdr, p_filesz), size);
    auto kernel = Load(file);
    ASSERT_TRUE(kernel.ok()) << kernel.error().message;
    EXPECT_EQ(kernel->protocol, Protocol::kLinux64);
  }
}

TEST_F(ElfKernel, OtherKindsOfElfAreNamed) {
  ExpectHeaderFailure<uint8_t>(EI_CLASS, ELFCLASS32, "32-bit ELF");
  ExpectHeaderFailure<uint8_t>(EI_DATA, ELFDATA2MSB, "another processor");
  ExpectHeaderFailure<uint16_t>(offsetof(Elf64_Ehdr, e_machine), EM_AARCH64, "another processor");
  ExpectHeaderFailure<uint16_t>(offsetof(Elf64_Ehdr, e_type), ET_REL, "not an executable");
  ExpectHeaderFailure<uint16_t>(offsetof(Elf64_Ehdr, e_type), ET_CORE, "not an executable");
}

TEST_F(ElfKernel, AbsurdProgramHeaderTablesAreRefused) {
  for (uint16_t size : {0, 1, 55, 57, 0xFFFF}) {
    ExpectHeaderFailure<uint16_t>(offsetof(Elf64_Ehdr, e_phentsize), size, "program headers are corrupt");
  }
  for (uint16_t count : {0, 129, 0xFFFF}) {
    ExpectHeaderFailure<uint16_t>(offsetof(Elf64_Ehdr, e_phnum), count, "program headers are corrupt");
  }
  const uint64_t size = MakeElf(kMiB).size();
  for (uint64_t offset : {size, size - 55, uint64_t{1} << 63, kHuge, kHuge - 55, kHuge - 54}) {
    ExpectHeaderFailure(offsetof(Elf64_Ehdr, e_phoff), offset, "truncated");
  }
  // The first header is the file's last bytes; the second would wrap round to its start.
  Bytes file = MakeElf(kMiB);
  Put<uint16_t>(file, offsetof(Elf64_Ehdr, e_phnum), 2);
  Put<uint64_t>(file, offsetof(Elf64_Ehdr, e_phoff), size - 56);
  ExpectFailure(file, "truncated");
}

TEST_F(ElfKernel, TruncatedAnywhereIsRefused) {
  const Bytes file = MakeElf(kMiB, MakePvhNote(uint32_t{kMiB}));
  for (uint64_t size = 1; size < file.size(); ++size) ASSERT_FALSE(Load(file, size).ok()) << size;
  for (uint64_t size : {uint64_t{4}, uint64_t{63}, uint64_t{64}, uint64_t{119}, uint64_t{file.size() - 1}}) {
    ExpectFailure(file, "truncated", size);
  }
}

TEST_F(ElfKernel, SegmentThatIsSmallerInMemoryThanInTheFileIsRefused) {
  ExpectSegmentFailure<uint64_t>(offsetof(Elf64_Phdr, p_memsz), 4095, "program headers are corrupt");
  ExpectSegmentFailure<uint64_t>(offsetof(Elf64_Phdr, p_filesz), kHuge, "program headers are corrupt");
}

TEST_F(ElfKernel, SegmentBeyondTheFileIsRefused) {
  for (uint64_t offset : {kHuge, kHuge - 4095, kHuge - 4096, uint64_t{1} << 63, uint64_t{177}}) {
    ExpectSegmentFailure(offsetof(Elf64_Phdr, p_offset), offset, "segment lies beyond the end of the file");
  }
}

TEST_F(ElfKernel, SegmentOutsideMemoryIsRefused) {
  for (uint64_t address : {uint64_t{0}, uint64_t{0x7000}, kMiB - 1}) {
    ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), address, "below 1 MiB");
  }
  ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), 128 * kMiB - 8191, "needs 129 MiB of memory");
  ExpectSegmentFailure(offsetof(Elf64_Phdr, p_memsz), 127 * kMiB + 1, "give it more with -m");
  for (uint64_t address : {4 * kGiB, uint64_t{1} << 63, kHuge - 8192}) {
    ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), address, "wants more memory than the 3072 MiB");
  }
  ExpectSegmentFailure(offsetof(Elf64_Phdr, p_memsz), kHuge - kMiB, "wants more memory than the 3072 MiB");
}

TEST_F(ElfKernel, SegmentWhoseEndWrapsIsRefused) {
  for (uint64_t address : {kHuge - 8191, kHuge}) {
    ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), address, "program headers are corrupt");
  }
  for (uint64_t size : {kHuge, kHuge - kMiB + 1}) {
    ExpectSegmentFailure(offsetof(Elf64_Phdr, p_memsz), size, "program headers are corrupt");
  }
}

TEST_F(ElfKernel, SegmentMayEndWithMemory) {
  const ElfSegment segment{.address = 128 * kMiB - 8192};
  auto kernel = Load(MakeElf(segment.address, std::span(&segment, 1)));
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->end, 128 * kMiB);
}

TEST_F(ElfKernel, SegmentAboveTheHoleIsRefusedThoughThereIsMemory) {
  machine_.memory_bytes = 6 * kGiB;
  memory_ = MakeRam(machine_.memory_bytes);
  ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), 4 * kGiB, "corrupt");
  ExpectSegmentFailure(offsetof(Elf64_Phdr, p_paddr), 3 * kGiB - 8191, "corrupt");
}

TEST_F(ElfKernel, OfOverlappingSegmentsTheLaterWins) {
  const std::vector<ElfSegment> segments{{.fill = std::byte{1}}, {.address = kMiB + 2048, .fill = std::byte{2}}};
  auto kernel = Load(MakeElf(kMiB, segments));
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(At(kMiB + 2047), std::byte{1});
  EXPECT_EQ(At(kMiB + 2048), std::byte{2});
  EXPECT_EQ(kernel->end, kMiB + 2048 + 8192);
}

TEST_F(ElfKernel, EntryOutsideWhatIsLoadedIsRefused) {
  for (uint64_t entry : {uint64_t{0}, kMiB - 1, kMiB + 8192, 4 * kGiB, kHuge}) {
    ExpectFailure(MakeElf(entry), "entry point");
  }
  const std::vector<ElfSegment> segments{{.address = kMiB}, {.address = 2 * kMiB}};
  ExpectFailure(MakeElf(kMiB + 8192, segments), "entry point");
  EXPECT_TRUE(Load(MakeElf(kMiB + 8191, segments)).ok());
  EXPECT_TRUE(Load(MakeElf(2 * kMiB, segments)).ok());
}

TEST_F(ElfKernel, NothingToLoadIsRefused) {
  ExpectSegmentFailure<uint32_t>(offsetof(Elf64_Phdr, p_type), PT_NULL, "nothing to load");
  ExpectFailure(MakeElf(kMiB, std::vector<ElfSegment>{{.file_bytes = 0, .memory_bytes = 0}}), "nothing to load");
}

TEST_F(ElfKernel, SegmentWithoutFileBytesOnlyTakesRoom) {
  const std::vector<ElfSegment> segments{{}, {.address = 4 * kMiB, .file_bytes = 0}};
  auto kernel = Load(MakeElf(kMiB, segments));
  ASSERT_TRUE(kernel.ok()) << kernel.error().message;
  EXPECT_EQ(kernel->end, 4 * kMiB + 8192);
}

}  // namespace
}  // namespace bulkhead::runner
