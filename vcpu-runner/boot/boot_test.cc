// SPDX-License-Identifier: Apache-2.0
// A whole guest loaded: zero page, PVH start info, initrd, command line and the boot processor's start state.
#include "vcpu-runner/boot/boot.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>

#include "vcpu-runner/boot/memory_map.h"
#include "vcpu-runner/boot/test_kernels.h"

namespace bulkhead::runner {
namespace {

using namespace test;

constexpr uint64_t kPage = 4096;

class BootLoad : public testing::Test {
 protected:
  void SetMemory(uint64_t size_bytes) {
    machine_.memory_bytes = size_bytes;
    memory_ = MakeRam(size_bytes);
  }
  void SetInitrd(std::span<const std::byte> bytes, std::optional<uint64_t> size_bytes = {}) {
    initrd_ = FileOf(bytes, size_bytes);
    sources_.initrd_fd = initrd_.get();
    sources_.initrd_name = "initrd.img";
  }
  Result<StartState> Load(const Bytes& kernel) {
    const OwnFd file = FileOf(kernel);
    sources_.kernel_fd = file.get();
    sources_.kernel_name = "vmlinuz";
    return LoadGuest(memory_, machine_, sources_);
  }
  StartState MustLoad(const Bytes& kernel) {
    auto state = Load(kernel);
    EXPECT_TRUE(state.ok()) << state.error().message;
    return state.ok() ? *state : StartState{};
  }
  std::string Failure(const Bytes& kernel) {
    auto state = Load(kernel);
    if (state.ok()) return "it was loaded";
    EXPECT_EQ(state.error().message.find('\n'), std::string::npos) << state.error().message;
    return state.error().message;
  }
  template <typename T>
  T At(uint64_t address) {
    return OrThrow(memory_.ReadObject<T>(Gpa{address}));
  }
  template <typename T>
  T BootParam(uint64_t offset) {
    return At<T>(kBootParamsAddress.value + offset);
  }
  std::string CommandLine() {
    std::array<char, kMaxCommandLine> text{};
    OrThrow(memory_.Read(kCommandLineAddress, std::as_writable_bytes(std::span(text))));
    return {text.data(), ::strnlen(text.data(), text.size())};
  }
  uint64_t InitrdAddress() { return BootParam<uint32_t>(0x218) | uint64_t{BootParam<uint32_t>(0x0C0)} << 32; }
  uint64_t InitrdSize() { return BootParam<uint32_t>(0x21C) | uint64_t{BootParam<uint32_t>(0x0C4)} << 32; }

  Machine machine_{.memory_bytes = 128 * kMiB, .vcpu_count = 2};
  GuestMemory memory_ = MakeRam(machine_.memory_bytes);
  BootSources sources_;
  OwnFd initrd_;
};

Bytes Pattern(uint64_t size_bytes) {
  Bytes bytes(size_bytes);
  for (uint64_t i = 0; i < size_bytes; ++i) bytes[i] = static_cast<std::byte>(i * 13 + 5);
  return bytes;
}

Bytes PvhKernel() { return MakeElf(kMiB, MakePvhNote(uint32_t{kMiB + 64})); }

// ---- Linux boot protocol ----

TEST_F(BootLoad, ZeroPageTellsALinuxKernelEverything) {
  sources_.command_line = "console=ttyS0 quiet";
  const Bytes initrd = Pattern(10'000);
  SetInitrd(initrd);
  MustLoad(MakeBzImage());
  EXPECT_EQ(BootParam<uint64_t>(0x070), kAcpiBase.value);
  EXPECT_EQ(At<uint64_t>(kAcpiBase.value), 0x2052'5450'2044'5352u);  // "RSD PTR "
  EXPECT_EQ(BootParam<uint8_t>(0x210), 0xFF);
  EXPECT_EQ(BootParam<uint32_t>(0x202), 0x5372'6448u);
  EXPECT_EQ(BootParam<uint16_t>(0x206), 0x020F);
  EXPECT_EQ(BootParam<uint32_t>(0x214), kMiB);
  EXPECT_EQ(BootParam<uint32_t>(0x228), kCommandLineAddress.value);
  EXPECT_EQ(CommandLine(), "console=ttyS0 quiet");
  EXPECT_EQ(InitrdAddress(), 128 * kMiB - 12'288);
  EXPECT_EQ(InitrdSize(), 10'000u);
  Bytes loaded(initrd.size());
  OrThrow(memory_.Read(Gpa{InitrdAddress()}, loaded));
  EXPECT_EQ(loaded, initrd);
}

TEST_F(BootLoad, ZeroPageHasTheMemoryMap) {
  for (uint64_t size : {128 * kMiB, 3 * kGiB, 3 * kGiB + kPage, 6 * kGiB}) {
    SetMemory(size);
    MustLoad(MakeBzImage());
    const auto map = GuestMemoryMap(machine_);
    ASSERT_EQ(BootParam<uint8_t>(0x1E8), map.size());
    for (size_t i = 0; i < map.size(); ++i) {
      EXPECT_EQ(BootParam<uint64_t>(0x2D0 + i * 20), map[i].base);
      EXPECT_EQ(BootParam<uint64_t>(0x2D0 + i * 20 + 8), map[i].size_bytes);
      EXPECT_EQ(BootParam<uint32_t>(0x2D0 + i * 20 + 16), static_cast<uint32_t>(map[i].type));
    }
  }
}

TEST_F(BootLoad, HostileHeaderDoesNotDecideTheLoadersFields) {
  Bytes kernel = MakeBzImage();
  for (size_t field : {0x210, 0x218, 0x21C, 0x228}) Put<uint8_t>(kernel, field, 0x99);
  MustLoad(kernel);
  EXPECT_EQ(BootParam<uint8_t>(0x210), 0xFF);
  EXPECT_EQ(InitrdAddress(), 0u);
  EXPECT_EQ(InitrdSize(), 0u);
  EXPECT_EQ(BootParam<uint32_t>(0x228), kCommandLineAddress.value);
}

TEST_F(BootLoad, ElfWithoutPvhNoteGetsAZeroPageToo) {
  const StartState state = MustLoad(MakeElf(kMiB + 16));
  EXPECT_EQ(state.rip, kMiB + 16);
  EXPECT_EQ(state.rsi, kBootParamsAddress.value);
  EXPECT_NE(state.efer, 0u);
  EXPECT_EQ(BootParam<uint8_t>(0x1E8), GuestMemoryMap(machine_).size());
  EXPECT_EQ(BootParam<uint32_t>(0x228), kCommandLineAddress.value);
}

// ---- PVH ----

TEST_F(BootLoad, StartInfoTellsAPvhKernelEverything) {
  sources_.command_line = "root=/dev/vda";
  SetInitrd(Pattern(5000));
  MustLoad(PvhKernel());
  const uint64_t info = kStartInfoAddress.value;
  EXPECT_EQ(At<uint32_t>(info), 0x336E'C578u);
  EXPECT_EQ(At<uint32_t>(info + 4), 1u);
  EXPECT_EQ(At<uint32_t>(info + 12), 1u);  // one module
  const auto module = At<uint64_t>(info + 16);
  EXPECT_EQ(At<uint64_t>(module), 128 * kMiB - 2 * kPage);
  EXPECT_EQ(At<uint64_t>(module + 8), 5000u);
  EXPECT_EQ(At<uint64_t>(module + 16), 0u);
  EXPECT_EQ(At<uint64_t>(info + 24), kCommandLineAddress.value);
  EXPECT_EQ(At<uint64_t>(info + 32), kAcpiBase.value);
  EXPECT_EQ(CommandLine(), "root=/dev/vda");
}

TEST_F(BootLoad, StartInfoWithoutInitrdHasNoModule) {
  MustLoad(PvhKernel());
  EXPECT_EQ(At<uint32_t>(kStartInfoAddress.value + 12), 0u);
  EXPECT_EQ(At<uint64_t>(kStartInfoAddress.value + 16), 0u);
}

TEST_F(BootLoad, StartInfoHasTheMemoryMap) {
  for (uint64_t size : {128 * kMiB, 3 * kGiB, 3 * kGiB + kPage, 6 * kGiB}) {
    SetMemory(size);
    MustLoad(PvhKernel());
    const auto map = GuestMemoryMap(machine_);
    const auto at = At<uint64_t>(kStartInfoAddress.value + 40);
    ASSERT_EQ(At<uint32_t>(kStartInfoAddress.value + 48), map.size());
    EXPECT_LE(at + map.size() * 24, kBootParamsAddress.value);
    for (size_t i = 0; i < map.size(); ++i) {
      EXPECT_EQ(At<uint64_t>(at + i * 24), map[i].base);
      EXPECT_EQ(At<uint64_t>(at + i * 24 + 8), map[i].size_bytes);
      EXPECT_EQ(At<uint32_t>(at + i * 24 + 16), static_cast<uint32_t>(map[i].type));
    }
  }
}

// ---- initrd ----

TEST_F(BootLoad, InitrdStaysBelowTheKernelsLimit) {
  SetMemory(3 * kGiB);
  SetInitrd(Pattern(8192));
  for (uint32_t max : {0x37FF'FFFFu, 0x37FF'FFFEu, 0x0200'0000u}) {
    Bytes kernel = MakeBzImage();
    Put(kernel, kInitrdAddrMax, max);
    MustLoad(kernel);
    EXPECT_LE(InitrdAddress() + InitrdSize(), uint64_t{max} + 1);
    EXPECT_GT(InitrdAddress() + InitrdSize() + kPage, uint64_t{max});  // as high as it may be
    EXPECT_EQ(InitrdAddress() % kPage, 0u);
  }
}

TEST_F(BootLoad, InitrdStaysBelowTheHole) {
  SetMemory(6 * kGiB);
  Bytes kernel = MakeBzImage();
  Put<uint32_t>(kernel, kInitrdAddrMax, 0xFFFF'FFFF);
  SetInitrd(Pattern(8192));
  MustLoad(kernel);
  EXPECT_EQ(InitrdAddress(), 3 * kGiB - 8192);
}

TEST_F(BootLoad, InitrdMayFillAllThatTheKernelLeaves) {
  SetInitrd({}, 104 * kMiB);  // the kernel ends at 24 MiB
  MustLoad(MakeBzImage());
  EXPECT_EQ(InitrdAddress(), 24 * kMiB);
  EXPECT_EQ(InitrdSize(), 104 * kMiB);
}

TEST_F(BootLoad, InitrdThatWouldTouchTheKernelAsksForMemory) {
  for (uint64_t size : {104 * kMiB + 1, 128 * kMiB, 128 * kMiB + 1, kGiB}) {
    SetInitrd({}, size);
    const std::string message = Failure(MakeBzImage());
    EXPECT_TRUE(message.starts_with("initrd 'initrd.img': is ")) << message;
    EXPECT_NE(message.find("give the guest more with -m"), std::string::npos) << message;
  }
}

TEST_F(BootLoad, InitrdThatNoMemoryMakesFitDoesNotAskForMemory) {
  for (uint64_t size : {2 * kGiB, 3 * kGiB, uint64_t{1} << 40, uint64_t{1} << 62}) {
    SetInitrd({}, size);
    const std::string message = Failure(MakeBzImage());
    EXPECT_TRUE(message.starts_with("initrd 'initrd.img': is ")) << message;
    EXPECT_EQ(message.find("-m"), std::string::npos) << message;
  }
  Bytes kernel = MakeBzImage();
  SetInitrd(Pattern(1));
  for (uint32_t max : {0u, 1u, 0xFFFu, 0x017F'FFFFu}) {  // below the end of the kernel
    Put(kernel, kInitrdAddrMax, max);
    const std::string message = Failure(kernel);
    EXPECT_TRUE(message.starts_with("initrd 'initrd.img': is ")) << message;
    EXPECT_EQ(message.find("-m"), std::string::npos) << message;
  }
}

TEST_F(BootLoad, EmptyInitrdAndOddFilesAreRefused) {
  SetInitrd({});
  EXPECT_EQ(Failure(MakeBzImage()), "initrd 'initrd.img': the file is empty");
  EXPECT_EQ(Failure({}), "kernel 'vmlinuz': the file is empty");
  const OwnFd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  sources_.initrd_fd = directory.get();
  EXPECT_EQ(Failure(MakeBzImage()), "initrd 'initrd.img': is a directory; name the file in it");
  std::array<int, 2> ends;
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const OwnFd reader(ends[0]), writer(ends[1]);
  sources_.initrd_fd = reader.get();
  EXPECT_EQ(Failure(MakeBzImage()), "initrd 'initrd.img': is not a regular file");
  sources_.initrd_fd = -1;
  EXPECT_TRUE(Failure(MakeBzImage()).starts_with("initrd 'initrd.img'"));
}

// ---- command line ----

TEST_F(BootLoad, CommandLineMayBeAsLongAsTheKernelTakes) {
  sources_.command_line.assign(2047, 'a');
  MustLoad(MakeBzImage());
  EXPECT_EQ(CommandLine(), sources_.command_line);
  MustLoad(PvhKernel());
}

TEST_F(BootLoad, LongerCommandLineIsRefused) {
  sources_.command_line.assign(2048, 'a');
  for (const Bytes& kernel : {MakeBzImage(), PvhKernel(), MakeElf(kMiB)}) {
    EXPECT_EQ(Failure(kernel), "kernel command line: it is 2048 bytes, and this kernel takes 2047: shorten --append");
  }
}

TEST_F(BootLoad, CommandLineHasAnEndWhateverTheKernelSays) {
  Bytes kernel = MakeBzImage();
  Put<uint32_t>(kernel, kCommandLineSize, 0xFFFF'FFFF);
  sources_.command_line.assign(kMaxCommandLine - 1, 'a');
  MustLoad(kernel);
  EXPECT_EQ(CommandLine(), sources_.command_line);
  EXPECT_EQ(At<uint8_t>(kCommandLineAddress.value + kMaxCommandLine - 1), 0);
  sources_.command_line += 'a';
  EXPECT_NE(Failure(kernel).find("65536 bytes, and this kernel takes 65535"), std::string::npos);
}

TEST_F(BootLoad, KernelThatTakesNoCommandLineStillStartsWithoutOne) {
  Bytes kernel = MakeBzImage();
  Put<uint32_t>(kernel, kCommandLineSize, 0);
  MustLoad(kernel);
  sources_.command_line = "a";
  EXPECT_NE(Failure(kernel).find("1 bytes, and this kernel takes 0"), std::string::npos);
}

// ---- start state ----

// A segment's attributes as its descriptor in guest memory has them (Intel SDM vol. 3 §3.4.5).
void ExpectDescriptor(uint64_t descriptor, const Segment& segment) {
  EXPECT_EQ(descriptor >> 40 & 0xF, segment.type);
  EXPECT_EQ(descriptor >> 44 & 1, segment.code_or_data);
  EXPECT_EQ(descriptor >> 45 & 3, segment.dpl);
  EXPECT_EQ(descriptor >> 47 & 1, segment.present);
  EXPECT_EQ(descriptor >> 53 & 1, segment.long_mode);
  EXPECT_EQ(descriptor >> 54 & 1, segment.default_big);
  EXPECT_EQ(descriptor >> 55 & 1, segment.granular);
  const uint64_t limit = (descriptor & 0xFFFF) | (descriptor >> 32 & 0xF'0000);
  EXPECT_EQ(segment.granular ? limit << 12 | 0xFFF : limit, segment.limit);
  const uint64_t base = (descriptor >> 16 & 0xFF'FFFF) | (descriptor >> 56) << 24;
  EXPECT_EQ(base, segment.base);
}

class BootState : public BootLoad {
 protected:
  uint64_t Descriptor(const StartState& state, uint16_t selector) {
    EXPECT_EQ(selector % 8, 0);
    EXPECT_LE(selector + 7, state.gdt.limit);
    return At<uint64_t>(state.gdt.base + selector);
  }
  void ExpectFlat(const StartState& state) {
    EXPECT_EQ(state.code.selector, 0x10);  // __BOOT_CS, __BOOT_DS
    EXPECT_EQ(state.data.selector, 0x18);
    EXPECT_EQ(state.code.base, 0u);
    EXPECT_EQ(state.data.base, 0u);
    EXPECT_EQ(state.code.limit, 0xFFFF'FFFFu);
    EXPECT_EQ(state.data.limit, 0xFFFF'FFFFu);
    EXPECT_EQ(state.code.type, 0xB);
    EXPECT_EQ(state.data.type, 0x3);
    EXPECT_EQ(state.task.type, 0xB);
    EXPECT_EQ(state.rflags, 2u);  // interrupts off
    EXPECT_NE(state.cr0 & 1, 0u);
    EXPECT_EQ(At<uint64_t>(state.gdt.base), 0u);
    ExpectDescriptor(Descriptor(state, state.code.selector), state.code);
    ExpectDescriptor(Descriptor(state, state.data.selector), state.data);
    ExpectDescriptor(Descriptor(state, state.task.selector), state.task);
  }
  void ExpectProtectedMode(const StartState& state) {
    ExpectFlat(state);
    EXPECT_EQ(state.cr0 & 1u << 31, 0u);  // no paging
    EXPECT_EQ(state.cr3, 0u);
    EXPECT_EQ(state.cr4, 0u);
    EXPECT_EQ(state.efer, 0u);
    EXPECT_FALSE(state.code.long_mode);
    EXPECT_TRUE(state.code.default_big);
  }
  // Walks the page tables (4-level, 2 MiB pages) for the physical address behind a linear one.
  std::optional<uint64_t> Translate(const StartState& state, uint64_t linear) {
    constexpr uint64_t kAddress = 0x000F'FFFF'FFFF'F000;
    uint64_t table = state.cr3;
    for (int shift = 39; shift >= 21; shift -= 9) {
      const auto entry = At<uint64_t>(table + (linear >> shift & 511) * 8);
      if ((entry & 3) != 3) return {};
      if (shift == 21)
        return (entry & 1 << 7) != 0 ? std::optional((entry & kAddress) + linear % (2 * kMiB)) : std::nullopt;
      if ((entry & 1 << 7) != 0) return {};
      table = entry & kAddress;
    }
    return {};
  }
};

TEST_F(BootState, SixtyFourBitKernelStartsInLongModeWithTheZeroPageInRsi) {
  const StartState state = MustLoad(MakeBzImage());
  ExpectFlat(state);
  EXPECT_EQ(state.rip, kMiB + 0x200);
  EXPECT_EQ(state.rsi, kBootParamsAddress.value);
  EXPECT_EQ(state.cr0 & (1u << 31 | 1), 1u << 31 | 1);
  EXPECT_EQ(state.cr4, 1u << 5);
  EXPECT_EQ(state.efer, 1u << 8 | 1u << 10);
  EXPECT_TRUE(state.code.long_mode);
  EXPECT_FALSE(state.code.default_big);
}

TEST_F(BootState, FirstFourGiBAreMappedOneToOne) {
  const StartState state = MustLoad(MakeBzImage());
  for (uint64_t address = 0; address < 4 * kGiB; address += 2 * kMiB) ASSERT_EQ(Translate(state, address), address);
  EXPECT_EQ(Translate(state, 4 * kGiB - 1), 4 * kGiB - 1);
  EXPECT_EQ(Translate(state, 4 * kGiB), std::nullopt);
  EXPECT_EQ(Translate(state, uint64_t{1} << 39), std::nullopt);
}

TEST_F(BootState, ThirtyTwoBitKernelStartsInProtectedModeWithTheZeroPageInEsi) {
  Bytes kernel = MakeBzImage();
  Put<uint16_t>(kernel, kXLoadFlags, 0);
  const StartState state = MustLoad(kernel);
  ExpectProtectedMode(state);
  EXPECT_EQ(state.rip, kMiB);
  EXPECT_EQ(state.rsi, kBootParamsAddress.value);
  EXPECT_EQ(state.rbx, 0u);
}

TEST_F(BootState, PvhKernelStartsInProtectedModeWithItsStartInfoInEbx) {
  const StartState state = MustLoad(PvhKernel());
  ExpectProtectedMode(state);
  EXPECT_EQ(state.rip, kMiB + 64);
  EXPECT_EQ(state.rbx, kStartInfoAddress.value);
  EXPECT_EQ(state.rsi, 0u);
}

}  // namespace
}  // namespace bulkhead::runner
