// SPDX-License-Identifier: Apache-2.0
// A kernel in guest memory, and what the rest of the loader must know of it. vcpu-runner, main thread; the image is
// hostile.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "ipc/guest_memory.h"
#include "vcpu-runner/boot/boot.h"
#include "vcpu-runner/boot/image.h"

namespace bulkhead::runner {

// The zero page (Documentation/arch/x86/zero-page.rst).
using ZeroPage = std::array<std::byte, 4096>;

struct LoadedKernel {
  enum class Protocol { kLinux64, kLinux32, kPvh };
  Protocol protocol = Protocol::kLinux64;
  uint64_t entry = 0;
  uint64_t end = 0;               // first byte above what it occupies while it starts
  uint64_t initrd_max = 0;        // last byte an initrd may occupy
  uint64_t command_line_max = 0;  // bytes without the terminator
  ZeroPage zero_page{};           // its own setup header in place, the rest zero
};

// Recognizes and loads a bzImage or an ELF vmlinux.
Result<LoadedKernel> LoadKernel(const Image& image, const GuestMemory& memory, const Machine& machine);

// The error of a kernel whose memory, [start, start + size_bytes), is not all there: it asks for more where a guest can
// have that. Both numbers are hostile.
Error MemoryError(const Image& image, uint64_t start, uint64_t size_bytes, const Machine& machine);

bool IsBzImage(const Image& image);
Result<LoadedKernel> LoadBzImage(const Image& image, const GuestMemory& memory, const Machine& machine);
bool IsElf(const Image& image);
Result<LoadedKernel> LoadElf(const Image& image, const GuestMemory& memory, const Machine& machine);

// Fields of the zero page: little-endian at fixed offsets.
template <typename T>
void PutField(ZeroPage& page, size_t offset, T value) {
  std::memcpy(page.data() + offset, &value, sizeof value);
}
template <typename T>
T GetField(const ZeroPage& page, size_t offset) {
  T value;
  std::memcpy(&value, page.data() + offset, sizeof value);
  return value;
}

}  // namespace bulkhead::runner
