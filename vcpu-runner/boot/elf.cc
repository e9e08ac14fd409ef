// SPDX-License-Identifier: Apache-2.0
// ELF kernels: a vmlinux by its PVH note where it has one, else by the 64-bit Linux boot protocol at its entry point.
#include <elf.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "vcpu-runner/boot/kernel.h"
#include "vcpu-runner/boot/memory_map.h"

namespace bulkhead::runner {
namespace {

constexpr uint32_t kNotePvhEntry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
constexpr char kNoteOwner[] = "Xen";
constexpr uint16_t kMaxProgramHeaders = 128;
constexpr uint64_t kMaxNoteBytes = 64 * 1024;
constexpr uint64_t kCommandLineMax = 2047;  // COMMAND_LINE_SIZE of Linux on x86, less its terminator
constexpr uint64_t kHighestInitrd = 0x7FFF'FFFF;

uint64_t Align4(uint64_t value) { return (value + 3) / 4 * 4; }

Result<Elf64_Ehdr> ReadHeader(const Image& image) {
  auto header = image.ReadObject<Elf64_Ehdr>(0);
  if (!header.ok()) return header;
  if (header->e_ident[EI_CLASS] != ELFCLASS64) return image.Fail("is a 32-bit ELF file; a 64-bit kernel is needed");
  if (header->e_ident[EI_DATA] != ELFDATA2LSB || header->e_machine != EM_X86_64) {
    return image.Fail("is an ELF file for another processor; an x86-64 kernel is needed");
  }
  if (header->e_type != ET_EXEC && header->e_type != ET_DYN) {
    return image.Fail("is an ELF file but not an executable kernel");
  }
  if (header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum == 0 || header->e_phnum > kMaxProgramHeaders) {
    return image.Fail("its ELF program headers are corrupt");
  }
  return header;
}

// The entry of a PVH note in a note segment, or 0.
uint64_t FindPvhEntry(std::span<const std::byte> notes) {
  while (notes.size() >= sizeof(Elf64_Nhdr)) {
    Elf64_Nhdr note;
    std::memcpy(&note, notes.data(), sizeof note);
    const uint64_t name_bytes = Align4(note.n_namesz);
    const uint64_t total = sizeof note + name_bytes + Align4(note.n_descsz);
    if (total > notes.size()) return 0;
    const bool is_ours = note.n_type == kNotePvhEntry && note.n_namesz == sizeof kNoteOwner &&
                         std::memcmp(notes.data() + sizeof note, kNoteOwner, sizeof kNoteOwner) == 0;
    if (is_ours && (note.n_descsz == 4 || note.n_descsz == 8)) {
      uint64_t entry = 0;
      std::memcpy(&entry, notes.data() + sizeof note + name_bytes, note.n_descsz);
      return entry;
    }
    notes = notes.subspan(total);
  }
  return 0;
}

Result<uint64_t> ReadPvhEntry(const Image& image, const Elf64_Phdr& segment) {
  if (segment.p_filesz > kMaxNoteBytes) return uint64_t{0};
  std::vector<std::byte> notes(segment.p_filesz);
  if (auto read = image.Read(segment.p_offset, notes); !read.ok()) return read.error();
  return FindPvhEntry(notes);
}

Result<void> LoadSegment(const Image& image, const GuestMemory& memory, const Machine& machine,
                         const Elf64_Phdr& segment) {
  if (segment.p_filesz > segment.p_memsz || segment.p_paddr + segment.p_memsz < segment.p_paddr) {
    return image.Fail("its ELF program headers are corrupt");
  }
  if (!image.Contains(segment.p_offset, segment.p_filesz)) {
    return image.Fail("an ELF segment lies beyond the end of the file: it is truncated; copy it again");
  }
  // Below 1 MiB are the loader's own structures; above the 32-bit hole 32-bit code could not reach it.
  const uint64_t low_ram = LowRamSize(machine);
  if (segment.p_paddr < kKernelBase) return image.Fail("an ELF segment lies below 1 MiB, where kernels are not loaded");
  if (segment.p_paddr > low_ram || segment.p_memsz > low_ram - segment.p_paddr) {
    return MemoryError(image, segment.p_paddr, segment.p_memsz, machine);
  }
  // What p_memsz has beyond the file's bytes is zero already: memory is fresh.
  return image.Load(segment.p_offset, segment.p_filesz, memory, Gpa{segment.p_paddr});
}

}  // namespace

bool IsElf(const Image& image) {
  auto magic = image.ReadObject<std::array<char, SELFMAG>>(0);
  return magic.ok() && std::memcmp(magic->data(), ELFMAG, SELFMAG) == 0;
}

Result<LoadedKernel> LoadElf(const Image& image, const GuestMemory& memory, const Machine& machine) {
  auto header = ReadHeader(image);
  if (!header.ok()) return header.error();
  LoadedKernel kernel;
  uint64_t pvh_entry = 0;
  std::vector<Elf64_Phdr> loaded_segments;
  for (uint16_t i = 0; i < header->e_phnum; ++i) {
    auto segment = image.ReadObject<Elf64_Phdr>(header->e_phoff + uint64_t{i} * sizeof(Elf64_Phdr));
    if (!segment.ok()) return segment.error();
    if (segment->p_type == PT_NOTE) {
      auto entry = ReadPvhEntry(image, *segment);
      if (!entry.ok()) return entry.error();
      if (*entry != 0) pvh_entry = *entry;
    }
    if (segment->p_type != PT_LOAD || segment->p_memsz == 0) continue;
    if (auto loaded = LoadSegment(image, memory, machine, *segment); !loaded.ok()) return loaded.error();
    loaded_segments.push_back(*segment);
    kernel.end = std::max(kernel.end, segment->p_paddr + segment->p_memsz);
  }
  if (kernel.end == 0) return image.Fail("is an ELF file with nothing to load");
  kernel.protocol = pvh_entry != 0 ? LoadedKernel::Protocol::kPvh : LoadedKernel::Protocol::kLinux64;
  kernel.entry = pvh_entry != 0 ? pvh_entry : header->e_entry;
  const auto holds_entry = [&kernel](const Elf64_Phdr& segment) {
    return kernel.entry >= segment.p_paddr && kernel.entry - segment.p_paddr < segment.p_memsz;
  };
  if (std::none_of(loaded_segments.begin(), loaded_segments.end(), holds_entry)) {
    return image.Fail("its entry point lies outside of what it loads");
  }
  kernel.initrd_max = kHighestInitrd;
  kernel.command_line_max = kCommandLineMax;
  return kernel;
}

}  // namespace bulkhead::runner
