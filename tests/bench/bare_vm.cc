// SPDX-License-Identifier: Apache-2.0
// bare_vm: a VM of one vCPU with nothing but KVM and a loop around KVM_RUN, the physical limit of what a VMM can reach.
// One process, one thread; its guest is the few bytes below.
//
//   bare_vm start MIB   the guest's first instruction says "F" on stdout, then nothing runs any more
//   bare_vm exits N     what N exits of each kind take: "bench NAME p50 CYCLES p99 CYCLES", or "bench NAME each CYCLES"
//                       of posted writes, and "second CYCLES"
//
// The guest runs at CPL 3 with IOPL 3, as payload guests do: on machines without hardware virtualization its exits cost
// more there.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPageTables = 0x1000;  // PML4, PDPT, page directory
constexpr uint64_t kCode = 0x8000;
constexpr uint64_t kTask = 0x9000;
constexpr uint64_t kMappedBytes = 1ull << 30;
constexpr uint16_t kPort = 0xE9;

struct Access {
  const char* name;
  uint8_t code[4];
  uint32_t exit;
  bool posted;
};
// Each access is repeated for ever. DX is the port, RSI an address behind the guest's memory.
constexpr Access kAccesses[] = {
    {"pio-read", {0xEC, 0xEB, 0xFD}, KVM_EXIT_IO, false},           // in (%dx), %al; jmp
    {"mmio-read", {0x8B, 0x06, 0xEB, 0xFC}, KVM_EXIT_MMIO, false},  // mov (%rsi), %eax; jmp
    {"pio-write", {0xEE, 0xEB, 0xFD}, KVM_EXIT_IO, true},           // out %al, (%dx); jmp
    {"mmio-write", {0x89, 0x06, 0xEB, 0xFC}, KVM_EXIT_MMIO, true},  // mov %eax, (%rsi); jmp
};

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "bare_vm: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

int Call(const char* what, int fd, unsigned long request, unsigned long argument = 0) {
  const int result = ::ioctl(fd, request, argument);
  if (result < 0) Fail(what);
  return result;
}
template <typename T>
int Call(const char* what, int fd, unsigned long request, T* argument) {
  return Call(what, fd, request, reinterpret_cast<unsigned long>(argument));
}

uint64_t Tsc() { return __builtin_ia32_rdtsc(); }

int64_t Nanoseconds() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

class BareVm {
 public:
  explicit BareVm(uint64_t memory_bytes) {
    const int kvm = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) Fail("/dev/kvm");
    vm_ = Call("KVM_CREATE_VM", kvm, KVM_CREATE_VM);
    Call("KVM_CREATE_IRQCHIP", vm_, KVM_CREATE_IRQCHIP);
    AddMemory(memory_bytes);
    vcpu_ = Call("KVM_CREATE_VCPU", vm_, KVM_CREATE_VCPU);
    const int run_bytes = Call("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE);
    void* const run = ::mmap(nullptr, static_cast<size_t>(run_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0);
    if (run == MAP_FAILED) Fail("mmap of a vCPU");
    run_ = static_cast<kvm_run*>(run);
  }

  void Start(const uint8_t (&code)[4]) {
    std::memcpy(memory_ + kCode, code, sizeof code);
    kvm_sregs sregs;
    Call("KVM_GET_SREGS", vcpu_, KVM_GET_SREGS, &sregs);
    sregs.cr0 = 0x8000'0033;  // PG, NE, ET, MP, PE
    sregs.cr3 = kPageTables;
    sregs.cr4 = 0x20;    // PAE
    sregs.efer = 0x500;  // LME, LMA
    kvm_segment data{};
    data.limit = 0xFFFF'FFFF;
    data.selector = 0x1B;
    data.type = 3;
    data.present = data.db = data.s = data.g = 1;
    data.dpl = 3;
    sregs.ds = sregs.es = sregs.ss = data;
    sregs.cs = data;
    sregs.cs.selector = 0x23;
    sregs.cs.type = 11;
    sregs.cs.db = 0;
    sregs.cs.l = 1;
    sregs.tr = {};
    sregs.tr.base = kTask;
    sregs.tr.limit = 0x67;
    sregs.tr.type = 11;
    sregs.tr.present = 1;
    Call("KVM_SET_SREGS", vcpu_, KVM_SET_SREGS, &sregs);
    kvm_regs regs{};
    regs.rip = kCode;
    regs.rflags = 0x3002;  // IOPL 3
    regs.rax = 'F';
    regs.rdx = kPort;
    regs.rsi = kMappedBytes - 4096;
    Call("KVM_SET_REGS", vcpu_, KVM_SET_REGS, &regs);
  }

  // Until the next exit, which is to be one of that kind.
  void Run(uint32_t exit) {
    if (::ioctl(vcpu_, KVM_RUN, 0) != 0) Fail("KVM_RUN");
    if (run_->exit_reason == exit) return;
    std::fprintf(stderr, "bare_vm: exit reason %u\n", run_->exit_reason);
    std::exit(1);
  }

 private:
  // Named as a VMM's, so that it is not counted among the VMM's own memory.
  void AddMemory(uint64_t bytes) {
    const int file = ::memfd_create("guest-bare", MFD_CLOEXEC);
    if (file < 0 || ::ftruncate(file, static_cast<off_t>(bytes)) != 0) Fail("memfd");
    void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) Fail("mmap of the guest's memory");
    memory_ = static_cast<uint8_t*>(memory);
    kvm_userspace_memory_region region{};
    region.memory_size = bytes;
    region.userspace_addr = reinterpret_cast<uint64_t>(memory);
    Call("KVM_SET_USER_MEMORY_REGION", vm_, KVM_SET_USER_MEMORY_REGION, &region);
    // One to one, in pages of 2 MiB, present, writable and for CPL 3.
    auto* const tables = reinterpret_cast<uint64_t*>(memory_ + kPageTables);
    tables[0] = kPageTables + 0x1007;
    tables[512] = kPageTables + 0x2007;
    for (uint64_t i = 0; i < 512; ++i) tables[1024 + i] = i * 2 * kMiB + 0x87;
  }

  int vm_ = -1, vcpu_ = -1;
  uint8_t* memory_ = nullptr;
  kvm_run* run_ = nullptr;
};

int Start(uint64_t mib) {
  BareVm vm(mib * kMiB);
  vm.Start(kAccesses[2].code);
  vm.Run(KVM_EXIT_IO);
  if (::write(STDOUT_FILENO, "F", 1) != 1) Fail("write");
  for (;;) ::pause();
}

int Exits(size_t count) {
  std::vector<uint64_t> cycles(count);
  const int64_t begun_ns = Nanoseconds();
  const uint64_t begun = Tsc();
  for (const Access& access : kAccesses) {
    BareVm vm(2 * kMiB);
    vm.Start(access.code);
    vm.Run(access.exit);
    uint64_t last = Tsc();
    const uint64_t first = last;
    for (uint64_t& each : cycles) {
      vm.Run(access.exit);
      const uint64_t now = Tsc();
      each = now - last;
      last = now;
    }
    if (access.posted) {
      std::printf("bench %s each %lu\n", access.name, (last - first) / count);
      continue;
    }
    std::sort(cycles.begin(), cycles.end());
    std::printf("bench %s p50 %lu p99 %lu\n", access.name, cycles[count / 2], cycles[count * 99 / 100]);
  }
  const double seconds = static_cast<double>(Nanoseconds() - begun_ns) / 1e9;
  std::printf("second %.0f\n", static_cast<double>(Tsc() - begun) / seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc == 3 ? argv[1] : "";
  const uint64_t number = argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
  if (mode == "start" && number > 0) return Start(number);
  if (mode == "exits" && number > 0) return Exits(number);
  std::fprintf(stderr, "usage: bare_vm start MIB | exits N\n");
  return 2;
}
