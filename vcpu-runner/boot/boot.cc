// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/boot/boot.h"

#include <algorithm>

#include "ipc/platform.h"
#include "vcpu-runner/boot/acpi_tables.h"
#include "vcpu-runner/boot/cpu_state.h"
#include "vcpu-runner/boot/image.h"
#include "vcpu-runner/boot/kernel.h"
#include "vcpu-runner/boot/memory_map.h"

namespace bulkhead::runner {
namespace {

constexpr uint64_t kPageBytes = 4096;

struct Initrd {
  Gpa address;
  uint64_t size_bytes = 0;
};

// As high below `end` as it goes, where it is least in the way; nothing if it would touch the kernel.
std::optional<uint64_t> InitrdAddress(uint64_t size_bytes, const LoadedKernel& kernel, uint64_t end) {
  end = end / kPageBytes * kPageBytes;
  if (size_bytes > end) return {};
  const uint64_t start = (end - size_bytes) / kPageBytes * kPageBytes;
  return start < kernel.end ? std::nullopt : std::optional(start);
}

Result<Initrd> LoadInitrd(const BootSources& sources, const LoadedKernel& kernel, const GuestMemory& memory,
                          const Machine& machine) {
  if (!sources.initrd_fd) return Initrd{};
  auto image = Image::Open(*sources.initrd_fd, "initrd '" + sources.initrd_name + "'");
  if (!image.ok()) return image.error();
  const uint64_t size = image->size_bytes();
  const uint64_t end = std::min(LowRamSize(machine), kernel.initrd_max + 1);
  const auto start = InitrdAddress(size, kernel, end);
  if (!start) {
    const bool more_helps =
        InitrdAddress(size, kernel, std::min(platform::kLowRamLimit, kernel.initrd_max + 1)).has_value();
    return image->Fail("is " + MiB(size) + " and does not fit above the kernel, which ends at " + MiB(kernel.end) +
                       ", in " + MiB(end) + " of memory: " +
                       (more_helps ? "give the guest more with -m" : "this kernel cannot take one so large"));
  }
  if (auto loaded = image->Load(0, size, memory, Gpa{*start}); !loaded.ok()) return loaded.error();
  return Initrd{Gpa{*start}, size};
}

Result<void> WriteCommandLine(const std::string& line, const LoadedKernel& kernel, const GuestMemory& memory) {
  const uint64_t limit = std::min(kernel.command_line_max, kMaxCommandLine - 1);
  if (line.size() > limit) {
    return Error{E2BIG, "kernel command line: it is " + std::to_string(line.size()) + " bytes, and this kernel takes " +
                            std::to_string(limit) + ": shorten --append"};
  }
  return memory.Write(kCommandLineAddress, std::as_bytes(std::span(line.c_str(), line.size() + 1)));
}

// The rest of the zero page (zero-page.rst).
Result<void> WriteZeroPage(LoadedKernel& kernel, const Initrd& initrd, Gpa rsdp, const GuestMemory& memory,
                           const Machine& machine) {
  constexpr size_t kRsdp = 0x070, kExtRamdiskImage = 0x0C0, kExtRamdiskSize = 0x0C4, kE820Count = 0x1E8;
  constexpr size_t kTypeOfLoader = 0x210, kRamdiskImage = 0x218, kRamdiskSize = 0x21C, kCommandLine = 0x228;
  constexpr size_t kE820Table = 0x2D0, kE820EntryBytes = 20;
  constexpr uint8_t kUndefinedLoader = 0xFF;
  ZeroPage& page = kernel.zero_page;
  PutField(page, kRsdp, rsdp.value);
  PutField(page, kTypeOfLoader, kUndefinedLoader);
  PutField(page, kRamdiskImage, static_cast<uint32_t>(initrd.address.value));
  PutField(page, kRamdiskSize, static_cast<uint32_t>(initrd.size_bytes));
  PutField(page, kExtRamdiskImage, static_cast<uint32_t>(initrd.address.value >> 32));
  PutField(page, kExtRamdiskSize, static_cast<uint32_t>(initrd.size_bytes >> 32));
  PutField(page, kCommandLine, static_cast<uint32_t>(kCommandLineAddress.value));
  const auto map = GuestMemoryMap(machine);
  PutField(page, kE820Count, static_cast<uint8_t>(map.size()));
  for (size_t i = 0; i < map.size(); ++i) {
    const size_t at = kE820Table + i * kE820EntryBytes;
    PutField(page, at, map[i].base);
    PutField(page, at + 8, map[i].size_bytes);
    PutField(page, at + 16, map[i].type);
  }
  return memory.WriteObject(kBootParamsAddress, page);
}

// hvm_start_info (Xen public/arch-x86/hvm/start_info.h, version 1), its module and its memory map.
Result<void> WriteStartInfo(const Initrd& initrd, Gpa rsdp, const GuestMemory& memory, const Machine& machine) {
  struct StartInfo {
    uint32_t magic = 0x336E'C578;
    uint32_t version = 1;
    uint32_t flags = 0;
    uint32_t module_count = 0;
    uint64_t modules = 0;
    uint64_t command_line = kCommandLineAddress.value;
    uint64_t rsdp = 0;
    uint64_t memory_map = 0;
    uint32_t memory_map_entries = 0;
    uint32_t reserved = 0;
  } info;
  struct Module {
    uint64_t address, size_bytes, command_line = 0, reserved = 0;
  };
  struct MapElement {
    uint64_t base, size_bytes;
    uint32_t type, reserved = 0;
  };
  const Gpa module_at = kStartInfoAddress + sizeof info;
  const Gpa map_at = module_at + sizeof(Module);
  const auto map = GuestMemoryMap(machine);
  info.module_count = initrd.size_bytes != 0 ? 1 : 0;
  info.modules = initrd.size_bytes != 0 ? module_at.value : 0;
  info.rsdp = rsdp.value;
  info.memory_map = map_at.value;
  info.memory_map_entries = static_cast<uint32_t>(map.size());
  if (auto result = memory.WriteObject(kStartInfoAddress, info); !result.ok()) return result;
  if (auto result = memory.WriteObject(module_at, Module{initrd.address.value, initrd.size_bytes}); !result.ok()) {
    return result;
  }
  for (size_t i = 0; i < map.size(); ++i) {
    const MapElement element{map[i].base, map[i].size_bytes, static_cast<uint32_t>(map[i].type)};
    if (auto result = memory.WriteObject(map_at + i * sizeof element, element); !result.ok()) return result;
  }
  return {};
}

}  // namespace

Error MemoryError(const Image& image, uint64_t start, uint64_t size_bytes, const Machine& machine) {
  if (start > platform::kLowRamLimit || size_bytes > platform::kLowRamLimit - start) {
    return image.Fail("wants more memory than the " + MiB(platform::kLowRamLimit) +
                      " that a guest can have below 4 GiB: it is corrupt");
  }
  return image.Fail("needs " + MiB(start + size_bytes) + " of memory to start, and the guest has " +
                    MiB(LowRamSize(machine)) + ": give it more with -m");
}

Result<LoadedKernel> LoadKernel(const Image& image, const GuestMemory& memory, const Machine& machine) {
  if (IsBzImage(image)) return LoadBzImage(image, memory, machine);
  if (IsElf(image)) return LoadElf(image, memory, machine);
  auto start = image.ReadObject<uint16_t>(0);
  constexpr uint16_t kGzip = 0x8B1F;
  if (start.ok() && *start == kGzip) return image.Fail("is a gzip file; unpack it with gunzip, or use the bzImage");
  return image.Fail("is neither a bzImage nor an ELF kernel (vmlinux) for x86-64");
}

Result<StartState> LoadGuest(const GuestMemory& memory, const Machine& machine, const BootSources& sources) {
  auto image = Image::Open(sources.kernel_fd, "kernel '" + sources.kernel_name + "'");
  if (!image.ok()) return image.error();
  auto kernel = LoadKernel(*image, memory, machine);
  if (!kernel.ok()) return kernel.error();
  auto initrd = LoadInitrd(sources, *kernel, memory, machine);
  if (!initrd.ok()) return initrd.error();
  if (auto written = WriteCommandLine(sources.command_line, *kernel, memory); !written.ok()) return written.error();
  auto rsdp = WriteAcpiTables(memory, machine);
  if (!rsdp.ok()) return rsdp.error();

  if (kernel->protocol == LoadedKernel::Protocol::kPvh) {
    if (auto written = WriteStartInfo(*initrd, *rsdp, memory, machine); !written.ok()) return written.error();
    return ProtectedModeState(memory, static_cast<uint32_t>(kernel->entry), Gpa{0}, kStartInfoAddress);
  }
  if (auto written = WriteZeroPage(*kernel, *initrd, *rsdp, memory, machine); !written.ok()) return written.error();
  if (kernel->protocol == LoadedKernel::Protocol::kLinux64) {
    return LongModeState(memory, kernel->entry, kBootParamsAddress);
  }
  return ProtectedModeState(memory, static_cast<uint32_t>(kernel->entry), kBootParamsAddress, Gpa{0});
}

}  // namespace bulkhead::runner
