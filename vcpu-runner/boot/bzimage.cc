// SPDX-License-Identifier: Apache-2.0
// bzImage by the Linux boot protocol (boot.rst, 2.15). Its payload is decompressed by its own code, in the guest.
#include <algorithm>

#include "vcpu-runner/boot/kernel.h"
#include "vcpu-runner/boot/memory_map.h"

namespace bulkhead::runner {
namespace {

// The setup header, by offset from the start of the file and of the zero page.
constexpr size_t kSetupSects = 0x1F1;
constexpr size_t kHeaderLength = 0x201;  // displacement of the jump over the header
constexpr size_t kHeaderMagic = 0x202;
constexpr size_t kVersion = 0x206;
constexpr size_t kLoadFlags = 0x211;
constexpr size_t kCode32Start = 0x214;
constexpr size_t kInitrdAddrMax = 0x22C;
constexpr size_t kRelocatable = 0x234;
constexpr size_t kXLoadFlags = 0x236;
constexpr size_t kCommandLineSize = 0x238;
constexpr size_t kPrefAddress = 0x258;
constexpr size_t kInitSize = 0x260;
constexpr size_t kLongestHeaderEnd = 0x290;  // the E820 table follows at 0x2D0

constexpr uint32_t kMagic = 0x5372'6448;     // "HdrS"
constexpr uint16_t kOldestVersion = 0x020C;  // 2.12: xloadflags, Linux 3.8
constexpr uint8_t kLoadedHigh = 1;
constexpr uint16_t kKernel64 = 1;
constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kDefaultSetupSects = 4;
constexpr uint64_t kEntry64Offset = 0x200;
constexpr uint64_t kSmallestFile = 0x268;

}  // namespace

bool IsBzImage(const Image& image) {
  auto magic = image.ReadObject<uint32_t>(kHeaderMagic);
  return magic.ok() && *magic == kMagic;
}

Result<LoadedKernel> LoadBzImage(const Image& image, const GuestMemory& memory, const Machine& machine) {
  LoadedKernel kernel;
  ZeroPage& page = kernel.zero_page;
  if (!image.Contains(0, kSmallestFile)) return image.Fail("the file ends inside its header: it is truncated");
  auto displacement = image.ReadObject<uint8_t>(kHeaderLength);
  if (!displacement.ok()) return displacement.error();
  const size_t header_end = std::min<size_t>(kHeaderMagic + *displacement, kLongestHeaderEnd);
  auto header = std::span(page).subspan(kSetupSects, header_end - kSetupSects);
  if (auto read = image.Read(kSetupSects, header); !read.ok()) return read.error();

  if (GetField<uint16_t>(page, kVersion) < kOldestVersion || header_end < kInitSize + sizeof(uint32_t)) {
    return image.Fail("is a kernel older than Linux 3.8 (boot protocol 2.12), which cannot be booted");
  }
  if ((GetField<uint8_t>(page, kLoadFlags) & kLoadedHigh) == 0)
    return image.Fail("is a zImage, which cannot be booted");
  const auto setup_sects = GetField<uint8_t>(page, kSetupSects);
  const uint64_t setup_bytes = (1 + (setup_sects != 0 ? setup_sects : kDefaultSetupSects)) * kSectorBytes;
  if (setup_bytes >= image.size_bytes()) {
    return image.Fail("the file ends in the middle of its setup code (" + std::to_string(image.size_bytes()) + " of " +
                      std::to_string(setup_bytes) + " bytes): it is truncated; copy it again");
  }
  const uint64_t code_bytes = image.size_bytes() - setup_bytes;
  // syssize counts 16-byte paragraphs of protected-mode code: fewer bytes than that is a truncated file.
  constexpr size_t kSysSize = 0x1F4;
  const uint64_t wanted_bytes = uint64_t{GetField<uint32_t>(page, kSysSize)} * 16;
  if (code_bytes + 15 < wanted_bytes) {
    return image.Fail("the file ends in the middle of the kernel (" + std::to_string(image.size_bytes()) + " of " +
                      std::to_string(setup_bytes + wanted_bytes) + " bytes): it is truncated; copy it again");
  }

  const bool relocatable = GetField<uint8_t>(page, kRelocatable) != 0;
  const uint64_t load = relocatable ? kKernelBase : GetField<uint32_t>(page, kCode32Start);
  const uint64_t runs_at = std::max(load, GetField<uint64_t>(page, kPrefAddress));
  const uint64_t needs = std::max<uint64_t>(GetField<uint32_t>(page, kInitSize), code_bytes);
  const uint64_t low_ram = LowRamSize(machine);
  if (load < kKernelBase) return image.Fail("its setup header is corrupt");
  if (runs_at > low_ram || needs > low_ram - runs_at) return MemoryError(image, runs_at, needs, machine);
  if (auto loaded = image.Load(setup_bytes, code_bytes, memory, Gpa{load}); !loaded.ok()) return loaded.error();
  PutField(page, kCode32Start, static_cast<uint32_t>(load));

  const bool has_64_bit_entry = (GetField<uint16_t>(page, kXLoadFlags) & kKernel64) != 0;
  kernel.protocol = has_64_bit_entry ? LoadedKernel::Protocol::kLinux64 : LoadedKernel::Protocol::kLinux32;
  kernel.entry = has_64_bit_entry ? load + kEntry64Offset : load;
  kernel.end = runs_at + needs;
  kernel.initrd_max = GetField<uint32_t>(page, kInitrdAddrMax);
  kernel.command_line_max = GetField<uint32_t>(page, kCommandLineSize);
  return kernel;
}

}  // namespace bulkhead::runner
