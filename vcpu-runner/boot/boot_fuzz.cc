// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a kernel file, hostile from its first byte or a sound one with fields overwritten, goes through the whole
// loader, with and without an initrd. What is accepted must start inside of memory and leave the loader's own
// structures as they were written.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "vcpu-runner/boot/memory_map.h"
#include "vcpu-runner/boot/test_kernels.h"

namespace bulkhead::runner {
namespace {

using namespace test;

constexpr uint64_t kMemoryBytes = 64 * kMiB;

// How to read the rest of the input.
struct Plan {
  uint8_t kernel;  // raw, or which sound kernel its patches go to
  uint8_t flags;
  uint8_t extra_size;  // a hole behind the kernel, in 8 KiB
  uint8_t initrd_size;
  uint32_t initrd_extra_size;
  uint16_t command_line_size;
};
constexpr uint8_t kWithInitrd = 1, kLargeInitrd = 2, kHugeKernel = 4, kHighRam = 8;

struct Patch {
  uint16_t offset;
  uint8_t width_log2;
  uint64_t value;
} __attribute__((packed));

void Require(bool holds) {
  if (!holds) std::abort();
}

std::span<const uint8_t> Take(std::span<const uint8_t>& data, size_t size) {
  const auto taken = data.first(std::min(size, data.size()));
  data = data.subspan(taken.size());
  return taken;
}

Bytes MakeKernel(uint8_t kind, std::span<const uint8_t> data) {
  const std::array<ElfSegment, 2> segments{ElfSegment{}, ElfSegment{.address = 2 * kMiB}};
  Bytes kernel;
  switch (kind % 4) {
    case 0: {
      const auto bytes = std::as_bytes(data);
      return {bytes.begin(), bytes.end()};
    }
    case 1:
      kernel = MakeBzImage();
      break;
    case 2:
      kernel = MakeElf(kMiB, segments);
      break;
    default:
      kernel = MakeElf(kMiB, segments, MakePvhNote(uint32_t{kMiB}));
      break;
  }
  for (Patch patch; data.size() >= sizeof patch;) {
    std::memcpy(&patch, Take(data, sizeof patch).data(), sizeof patch);
    const size_t width = size_t{1} << patch.width_log2 % 4;
    std::memcpy(kernel.data() + patch.offset % (kernel.size() - width), &patch.value, width);
  }
  return kernel;
}

void CheckLinux(const GuestMemory& memory, const BootSources& sources, const Bytes& initrd) {
  const auto field = [&](uint64_t offset) { return OrThrow(memory.ReadObject<uint32_t>(kBootParamsAddress + offset)); };
  const uint64_t address = field(0x218) | uint64_t{field(0x0C0)} << 32;
  const uint64_t size = field(0x21C) | uint64_t{field(0x0C4)} << 32;
  Require((size != 0) == sources.initrd_fd.has_value());
  Require(field(0x228) == kCommandLineAddress.value && field(0x070) == kAcpiBase.value);
  if (size == 0) return;
  Require(address >= kKernelBase && address % 4096 == 0 && memory.Contains(Gpa{address}, size));
  Bytes loaded(initrd.size());
  Require(memory.Read(Gpa{address}, loaded).ok() && loaded == initrd);
}

void CheckAccepted(const GuestMemory& memory, const BootSources& sources, const Bytes& initrd,
                   const StartState& state) {
  Require(state.rip >= kKernelBase && state.rip < 3 * kGiB);
  std::array<char, kGdtAddress.value> lowest{};
  OrThrow(memory.Read(Gpa{0}, std::as_writable_bytes(std::span(lowest))));
  Require(std::all_of(lowest.begin(), lowest.end(), [](char byte) { return byte == 0; }));
  Bytes line(sources.command_line.size() + 1);
  OrThrow(memory.Read(kCommandLineAddress, line));
  Require(std::memcmp(line.data(), sources.command_line.c_str(), line.size()) == 0);
  if (state.rsi == kBootParamsAddress.value) {
    CheckLinux(memory, sources, initrd);
  } else {
    Require(state.rbx == kStartInfoAddress.value && (state.cr0 >> 31) == 0);
    Require(OrThrow(memory.ReadObject<uint32_t>(kStartInfoAddress)) == 0x336E'C578);
  }
}

// Guest memory as it is at a guest's start: zero, with no page of the last run.
const GuestMemory& FreshMemory() {
  static const GuestMemory memory = MakeRam(kMemoryBytes);
  for (const GuestMemory::Mapping& mapping : memory.mappings()) {
    Require(::madvise(mapping.host, mapping.region.size_bytes, MADV_REMOVE) == 0);
  }
  return memory;
}

void Run(std::span<const uint8_t> data) {
  Plan plan;
  if (data.size() < sizeof plan) return;
  std::memcpy(&plan, Take(data, sizeof plan).data(), sizeof plan);
  const GuestMemory& memory = FreshMemory();
  const auto initrd_data = std::as_bytes(Take(data, plan.initrd_size));
  const Bytes initrd(initrd_data.begin(), initrd_data.end());
  const Bytes kernel = MakeKernel(plan.kernel, data);
  const uint64_t hole = (plan.flags & kHugeKernel) != 0 ? uint64_t{plan.extra_size} << 32 : plan.extra_size * 8192u;
  const OwnFd kernel_file = FileOf(kernel, kernel.size() + hole);
  const OwnFd initrd_file =
      FileOf(initrd, initrd.size() +
                         ((plan.flags & kLargeInitrd) != 0 ? plan.initrd_extra_size : plan.initrd_extra_size % 4096));
  BootSources sources{.kernel_fd = kernel_file.get(),
                      .kernel_name = "k",
                      .initrd_fd = {},
                      .initrd_name = "i",
                      .command_line = std::string(plan.command_line_size, 'c')};
  if ((plan.flags & kWithInitrd) != 0) sources.initrd_fd = initrd_file.get();
  // Checks against the machine's size pass more with a large one; those against its memory stay.
  const uint64_t memory_bytes = (plan.flags & kHighRam) != 0 ? 6 * kGiB : kMemoryBytes;
  auto state = LoadGuest(memory, {.memory_bytes = memory_bytes, .vcpu_count = 1u + plan.flags / 16}, sources);
  if (state.ok()) {
    CheckAccepted(memory, sources, initrd, *state);
  } else {
    Require(!state.error().message.empty() && state.error().message.find('\n') == std::string::npos);
  }
}

}  // namespace
}  // namespace bulkhead::runner

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bulkhead::runner::Run({data, size});
  return 0;
}
