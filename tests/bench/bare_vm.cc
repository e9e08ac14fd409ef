// SPDX-License-Identifier: Apache-2.0
// bare_vm: a VM of one vCPU with nothing but KVM and a loop around KVM_RUN, the physical limit of what a VMM can reach.
// One process, one thread, and the one of interrupts; its guest is the few bytes below.
//
//   bare_vm start MIB   the guest's first instruction says "F" on stdout, then nothing runs any more
//   bare_vm exits N     what N exits of each kind take: "bench NAME p50 CYCLES p99 CYCLES", or "bench NAME each CYCLES"
//                       of posted writes, and "second CYCLES"
//   bare_vm interrupts N  N times, one at a time: the guest's write is an ioeventfd, a thread that sleeps for it writes
//   to
//                       the guest's memory, and then to an irqfd. "bench used p50 ..." and "bench request p50 ..." as
//                       tests/payload/bench-irq.cc has them, and "second CYCLES"
//
// The guest runs at CPL 3 with IOPL 3, as payload guests do: on machines without hardware virtualization its exits cost
// more there.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "vcpu-runner/kvm/kvm_table.h"

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPageTables = 0x1000;  // PML4, PDPT, the page directories of the first and of the fourth GiB
constexpr uint64_t kCode = 0x8000;
constexpr uint64_t kTask = 0x9000;
constexpr uint64_t kDescriptors = 0xA000;  // GDT
constexpr uint64_t kGates = 0xB000;        // IDT
constexpr uint64_t kStackEnd = 0xD000;     // of the handler
constexpr uint64_t kMoments = 0xD000;
constexpr uint64_t kMappedBytes = 1ull << 30;
constexpr uint64_t kUnbacked = kMappedBytes - 4096;  // an address behind the guest's memory
constexpr uint64_t kLocalApic = 0xFEE0'0000;
constexpr uint16_t kPort = 0xE9;
constexpr uint8_t kVector = 0x40;
constexpr unsigned kPatienceS = 120;  // a lost interrupt ends it
constexpr uint32_t kMessageGsi = 24;  // the first that is no pin of the I/O APIC

// What the guest of "interrupts" and this program share, at kMoments: times in cycles, and how many requests there were
// and are answered.
struct Moments {
  uint64_t begun, seen, handled;
  std::atomic<uint32_t> requests, answers;
};
static_assert(sizeof(Moments) == 32);

// RBX is kMoments, RSI the address of the ioeventfd. After each request an exit.
asm(R"(
  .pushsection .rodata
interrupt_guest:
  movq $0, 16(%rbx)
  incl 24(%rbx)
  movl 24(%rbx), %ecx
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  movq %rax, (%rbx)
  movl %ecx, (%rsi)
1:
  pause
  cmpl %ecx, 28(%rbx)
  jne 1b
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  movq %rax, 8(%rbx)
2:
  pause
  cmpq $0, 16(%rbx)
  je 2b
  outb %al, $0xE9
  jmp interrupt_guest
interrupt_handler:
  pushq %rax
  pushq %rdx
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  movq %rax, 16(%rbx)
  movl $0xFEE000B0, %eax  # end of interrupt
  movl $0, (%rax)
  popq %rdx
  popq %rax
  iretq
interrupt_guest_end:
  .popsection
)");
extern "C" const uint8_t interrupt_guest[], interrupt_handler[], interrupt_guest_end[];

struct Access {
  const char* name;
  uint8_t code[4];
  uint32_t exit;
  bool posted;
};
// Each access is repeated for ever. DX is the port, RSI kUnbacked.
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

  void Start(std::span<const uint8_t> code, bool interrupts = false) {
    std::memcpy(memory_ + kCode, code.data(), code.size());
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
    sregs.gdt.base = kDescriptors;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = kGates;
    sregs.idt.limit = 256 * 16 - 1;
    Call("KVM_SET_SREGS", vcpu_, KVM_SET_SREGS, &sregs);
    kvm_regs regs{};
    regs.rip = kCode;
    regs.rflags = interrupts ? 0x3202 : 0x3002;  // IOPL 3, IF
    regs.rax = 'F';
    regs.rbx = kMoments;
    regs.rdx = kPort;
    regs.rsi = kUnbacked;
    Call("KVM_SET_REGS", vcpu_, KVM_SET_REGS, &regs);
  }

  // Writes of four bytes to kUnbacked signal `kick`; signals of `interrupt` are the vCPU's interrupts.
  void Connect(int kick, int interrupt) {
    kvm_ioeventfd ioeventfd{};
    ioeventfd.addr = kUnbacked;
    ioeventfd.len = 4;
    ioeventfd.fd = kick;
    Call("KVM_IOEVENTFD", vm_, KVM_IOEVENTFD, &ioeventfd);
    kvm_irq_routing_entry route{};
    route.gsi = kMessageGsi;
    route.type = KVM_IRQ_ROUTING_MSI;
    route.u.msi.address_lo = kLocalApic;
    route.u.msi.data = kVector;
    bulkhead::runner::KvmTable<kvm_irq_routing_entry> routes(std::span<const kvm_irq_routing_entry>(&route, 1));
    Call("KVM_SET_GSI_ROUTING", vm_, bulkhead::runner::kSetGsiRouting, static_cast<uint64_t*>(routes.argument()));
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<uint32_t>(interrupt);
    irqfd.gsi = kMessageGsi;
    Call("KVM_IRQFD", vm_, KVM_IRQFD, &irqfd);
    kvm_lapic_state apic;
    Call("KVM_GET_LAPIC", vcpu_, KVM_GET_LAPIC, &apic);
    apic.regs[0xF1] |= 1;  // bit 8 of the register at 0xF0: enabled by software
    Call("KVM_SET_LAPIC", vcpu_, KVM_SET_LAPIC, &apic);
    DescribeHandler();
  }

  Moments& moments() { return *reinterpret_cast<Moments*>(memory_ + kMoments); }

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
    tables[512 + 3] = kPageTables + 0x3007;
    tables[1536 + (kLocalApic >> 21) % 512] = kLocalApic + 0x97;  // not cached
  }

  // The handler runs at CPL 0; what is interrupted has the segments that Start gives it.
  void DescribeHandler() {
    auto* const descriptors = reinterpret_cast<uint64_t*>(memory_ + kDescriptors);
    descriptors[1] = 0x00AF'9B00'0000'FFFF;  // code of CPL 0
    descriptors[3] = 0x00CF'F300'0000'FFFF;  // data of CPL 3
    descriptors[4] = 0x00AF'FB00'0000'FFFF;  // its code
    const uint64_t handler = kCode + static_cast<uint64_t>(interrupt_handler - interrupt_guest);
    auto* const gate = reinterpret_cast<uint64_t*>(memory_ + kGates) + kVector * 2;
    gate[0] = (handler & 0xFFFF) | 0x08 << 16 | 0x8E00ull << 32 | (handler >> 16 & 0xFFFF) << 48;
    gate[1] = handler >> 32;
    std::memcpy(memory_ + kTask + 4, &kStackEnd, sizeof kStackEnd);  // RSP0
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

void Print(const char* name, std::vector<uint64_t>& cycles) {
  std::sort(cycles.begin(), cycles.end());
  std::printf("bench %s p50 %lu p99 %lu\n", name, cycles[cycles.size() / 2], cycles[cycles.size() * 99 / 100]);
}

// Of a second, since it was made.
class Clock {
 public:
  void Print() const {
    const double seconds = static_cast<double>(Nanoseconds() - begun_ns_) / 1e9;
    std::printf("second %.0f\n", static_cast<double>(Tsc() - begun_) / seconds);
  }

 private:
  const int64_t begun_ns_ = Nanoseconds();
  const uint64_t begun_ = Tsc();
};

int Exits(size_t count) {
  std::vector<uint64_t> cycles(count);
  const Clock clock;
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
    Print(access.name, cycles);
  }
  clock.Print();
  return 0;
}

int Event() {
  const int event = ::eventfd(0, EFD_CLOEXEC);
  if (event < 0) Fail("eventfd");
  return event;
}

// Answers a guest's requests, as a device's process would.
void Answer(Moments& moments, int kick, int interrupt, size_t count) {
  for (uint32_t number = 1; number <= count; ++number) {
    uint64_t signals = 0;
    const uint64_t one = 1;
    if (::read(kick, &signals, sizeof signals) != sizeof signals) Fail("read of an eventfd");
    moments.answers = number;
    if (::write(interrupt, &one, sizeof one) != sizeof one) Fail("write to an eventfd");
  }
}

int Interrupts(size_t count) {
  std::vector<uint64_t> used, request;
  const Clock clock;
  BareVm vm(2 * kMiB);
  const int kick = Event(), interrupt = Event();
  vm.Connect(kick, interrupt);
  vm.Start({interrupt_guest, interrupt_guest_end}, true);
  Moments& moments = vm.moments();
  ::alarm(kPatienceS);
  std::thread device(Answer, std::ref(moments), kick, interrupt, count);
  for (size_t i = 0; i < count; ++i) {
    vm.Run(KVM_EXIT_IO);
    used.push_back(moments.handled > moments.seen ? moments.handled - moments.seen : 0);
    request.push_back(moments.handled - moments.begun);
  }
  device.join();
  Print("used", used);
  Print("request", request);
  clock.Print();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc == 3 ? argv[1] : "";
  const uint64_t number = argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
  if (mode == "start" && number > 0) return Start(number);
  if (mode == "exits" && number > 0) return Exits(number);
  if (mode == "interrupts" && number > 0) return Interrupts(number);
  std::fprintf(stderr, "usage: bare_vm start MIB | exits N | interrupts N\n");
  return 2;
}
