// SPDX-License-Identifier: Apache-2.0
// For tests and fuzzers: kernel files made field by field, guest memory, and the files they are read from.
#pragma once

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ipc/fd.h"
#include "ipc/guest_memory.h"
#include "ipc/platform.h"
#include "vcpu-runner/boot/boot.h"
#include "vcpu-runner/boot/image.h"

namespace bulkhead::runner::test {

using platform::kGiB;
using platform::kMiB;
using Bytes = std::vector<std::byte>;

template <typename T>
void Put(Bytes& bytes, size_t offset, T value) {
  if (bytes.size() < offset + sizeof value) bytes.resize(offset + sizeof value);
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

// A file with these bytes; with `size_bytes`, that long, cut off or followed by a hole.
inline OwnFd FileOf(std::span<const std::byte> bytes, std::optional<uint64_t> size_bytes = {}) {
  OwnFd file(::memfd_create("test-file", MFD_CLOEXEC));
  if (!file.valid()) ThrowErrno("memfd_create");
  if (::pwrite(file.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) ThrowErrno("pwrite");
  if (::ftruncate(file.get(), static_cast<off_t>(size_bytes.value_or(bytes.size()))) != 0) ThrowErrno("ftruncate");
  return file;
}

// RAM laid out as the broker does it.
inline GuestMemory MakeRam(uint64_t size_bytes) {
  const OwnFd file = OrThrow(MakeSealedMemory("test-guest", size_bytes));
  return OrThrow(GuestMemory::Map(file.get(), platform::RamRegions(size_bytes)));
}

// The setup header's offsets (boot.rst, "Details of header fields").
inline constexpr size_t kSetupSects = 0x1F1, kSysSize = 0x1F4, kBootFlag = 0x1FE, kJump = 0x200, kHeaderMagic = 0x202;
inline constexpr size_t kVersion = 0x206, kLoadFlags = 0x211, kCode32Start = 0x214, kInitrdAddrMax = 0x22C;
inline constexpr size_t kRelocatable = 0x234, kXLoadFlags = 0x236, kCommandLineSize = 0x238, kPrefAddress = 0x258;
inline constexpr size_t kInitSize = 0x260;

inline constexpr uint64_t kSetupBytes = 5 * 512;
inline constexpr uint64_t kCodeBytes = 3 * 4096 + 16;

inline std::byte CodeAt(uint64_t offset) { return static_cast<std::byte>(offset * 7 + 1); }

// A kernel as Linux 6.x describes itself, with recognizable code.
inline Bytes MakeBzImage() {
  Bytes file(kSetupBytes + kCodeBytes);
  for (uint64_t i = 0; i < kCodeBytes; ++i) file[kSetupBytes + i] = CodeAt(i);
  Put<uint8_t>(file, kSetupSects, kSetupBytes / 512 - 1);
  Put<uint32_t>(file, kSysSize, kCodeBytes / 16);
  Put<uint16_t>(file, kBootFlag, 0xAA55);
  Put<uint16_t>(file, kJump, 0x6AEB);  // jmp to 0x26C, where the header ends
  Put<uint32_t>(file, kHeaderMagic, 0x5372'6448);
  Put<uint16_t>(file, kVersion, 0x020F);
  Put<uint8_t>(file, kLoadFlags, 1);
  Put<uint32_t>(file, kCode32Start, 0x10'0000);
  Put<uint32_t>(file, kInitrdAddrMax, 0x7FFF'FFFF);
  Put<uint8_t>(file, kRelocatable, 1);
  Put<uint16_t>(file, kXLoadFlags, 1);
  Put<uint32_t>(file, kCommandLineSize, 2047);
  Put<uint64_t>(file, kPrefAddress, 16 * kMiB);
  Put<uint32_t>(file, kInitSize, 8 * kMiB);
  return file;
}

struct ElfSegment {
  uint64_t address = kMiB;
  uint64_t file_bytes = 4096;
  uint64_t memory_bytes = 8192;
  std::byte fill{0x5A};
};

// One note, padded as in a note segment.
inline Bytes MakeNote(const std::string& owner, uint32_t type, std::span<const std::byte> value) {
  Bytes note(sizeof(Elf64_Nhdr));
  const Elf64_Nhdr header{static_cast<uint32_t>(owner.size() + 1), static_cast<uint32_t>(value.size()), type};
  std::memcpy(note.data(), &header, sizeof header);
  const auto append = [&note](std::span<const std::byte> bytes) {
    note.insert(note.end(), bytes.begin(), bytes.end());
    note.resize((note.size() + 3) / 4 * 4);
  };
  append(std::as_bytes(std::span(owner.c_str(), owner.size() + 1)));
  append(value);
  return note;
}

template <typename T>
Bytes MakePvhNote(T entry) {
  return MakeNote("Xen", 18, std::as_bytes(std::span(&entry, 1)));
}

inline constexpr size_t ProgramHeader(size_t index) { return sizeof(Elf64_Ehdr) + index * sizeof(Elf64_Phdr); }

// A vmlinux: a program header for each segment, one more for the notes where there are any, then their contents.
inline Bytes MakeElf(uint64_t entry, std::span<const ElfSegment> segments, const Bytes& notes = {}) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_entry = entry;
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<uint16_t>(segments.size() + (notes.empty() ? 0 : 1));
  Bytes file;
  Put(file, 0, header);
  file.resize(ProgramHeader(header.e_phnum));
  for (size_t i = 0; i < segments.size(); ++i) {
    Elf64_Phdr phdr{};
    phdr.p_type = PT_LOAD;
    phdr.p_offset = file.size();
    phdr.p_paddr = segments[i].address;
    phdr.p_filesz = segments[i].file_bytes;
    phdr.p_memsz = segments[i].memory_bytes;
    Put(file, ProgramHeader(i), phdr);
    file.resize(file.size() + segments[i].file_bytes, segments[i].fill);
  }
  if (!notes.empty()) {
    Elf64_Phdr phdr{};
    phdr.p_type = PT_NOTE;
    phdr.p_offset = file.size();
    phdr.p_filesz = phdr.p_memsz = notes.size();
    Put(file, ProgramHeader(segments.size()), phdr);
    file.insert(file.end(), notes.begin(), notes.end());
  }
  return file;
}

inline Bytes MakeElf(uint64_t entry, const Bytes& notes = {}) {
  const ElfSegment segment;
  return MakeElf(entry, std::span(&segment, 1), notes);
}

}  // namespace bulkhead::runner::test
