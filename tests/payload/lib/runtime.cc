// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/apic.h"
#include "tests/payload/lib/payload.h"

extern "C" {
extern uint64_t payload_gdt[], payload_idt[], payload_pdpt[];
extern uint8_t payload_stubs[], payload_stacks[];
using Constructor = void (*)();
extern Constructor payload_init_begin[], payload_init_end[];

void* memcpy(void* to, const void* from, size_t size) {
  void* const result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
  return result;
}
void* memset(void* to, int value, size_t size) {
  void* const result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return result;
}
void* memmove(void* to, const void* from, size_t size) {
  auto* out = static_cast<char*>(to);
  auto* in = static_cast<const char*>(from);
  if (out <= in) return memcpy(to, from, size);
  while (size-- > 0) reinterpret_cast<volatile char*>(out)[size] = in[size];
  return to;
}
int memcmp(const void* a, const void* b, size_t size) {
  auto* left = static_cast<const uint8_t*>(a);
  auto* right = static_cast<const uint8_t*>(b);
  for (; size > 0; --size, ++left, ++right) {
    if (*left != *right) return *left - *right;
  }
  return 0;
}
}

namespace payload {
namespace {

constexpr uint8_t kCallVector = 0xF0;
constexpr size_t kStackBytes = 0x8000;
constexpr size_t kKernelStackBytes = 0x4000;

struct [[gnu::packed]] TaskSegment {
  uint32_t reserved;
  uint64_t stack0;
  uint8_t unused[90];
  uint16_t port_map_offset;
  // All zero: every port below 4096 is allowed. IOPL 3 alone would do on a processor, but an interpreted
  // iretq was seen to lose it.
  uint8_t port_map[513];
};
static_assert(offsetof(TaskSegment, port_map) == 104);
constexpr uint64_t kTaskPriority = kLocalApic + 0x80;
constexpr uint32_t kHighestPriority = 0xF0;

struct Frame {
  uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, vector, error, rip, cs, rflags, rsp, ss;
};

uint64_t g_zero_page;
TaskSegment g_tasks[kMaxCpus];
Handler g_handlers[256];
void (*volatile g_call)();
alignas(4096) uint64_t g_high_directories[64][512];
unsigned g_high_directories_used;

void SetGate(unsigned vector) {
  const auto address = reinterpret_cast<uint64_t>(payload_stubs + 16 * vector);
  payload_idt[2 * vector] = (address & 0xFFFF) | 0x08ull << 16 | 0x8Eull << 40 | (address >> 16 & 0xFFFF) << 48;
  payload_idt[2 * vector + 1] = address >> 32;
}

// At the vector that function was asked for with.
void Call(uint8_t) {
  auto* const function = g_call;
  g_call = nullptr;
  function();
}

}  // namespace

void SetUpTask(uint32_t cpu) {
  const auto base = reinterpret_cast<uint64_t>(&g_tasks[cpu]);
  g_tasks[cpu].stack0 = reinterpret_cast<uint64_t>(payload_stacks) + cpu * kStackBytes + kKernelStackBytes;
  g_tasks[cpu].port_map_offset = offsetof(TaskSegment, port_map);
  payload_gdt[5 + 2 * cpu] =
      (sizeof(TaskSegment) - 1) | (base & 0xFF'FFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56;
  payload_gdt[6 + 2 * cpu] = base >> 32;
}

uint64_t ZeroPage() { return g_zero_page; }

void SetHandler(uint8_t vector, Handler handler) {
  g_handlers[vector] = handler;
  SetGate(vector);
}
void InterruptsOn() { Store<uint32_t>(kTaskPriority, 0); }
void InterruptsOff() { Store<uint32_t>(kTaskPriority, kHighestPriority); }

void RunAtCpl0(void (*function)()) {
  g_call = function;
  SetHandler(kCallVector, Call);
  InterruptsOn();
  SendIpi(LocalApicId(), kCallVector);
  while (g_call != nullptr) Pause();
}

void PauseForReader() {
  static const uint64_t cycles = Parameter("pause", 0);
  for (const uint64_t begun = Tsc(); Tsc() - begun < cycles;) Pause();
}

void Sleep() {
  RunAtCpl0([] {
    for (;;) asm volatile("sti; hlt");
  });
  for (;;) Pause();
}

void MapHigh(uint64_t address, uint64_t bytes) {
  constexpr uint64_t kGiB = 1ull << 30;
  for (uint64_t gib = address / kGiB; gib <= (address + bytes - 1) / kGiB && gib < 512; ++gib) {
    if (payload_pdpt[gib] != 0) continue;
    if (g_high_directories_used == 64) {
      Fail("map", "more than 64 GiB above 4 GiB");
      Done();
    }
    uint64_t* const directory = g_high_directories[g_high_directories_used++];
    for (uint64_t i = 0; i < 512; ++i) directory[i] = gib * kGiB + i * (2ull << 20) + 0x87;
    payload_pdpt[gib] = reinterpret_cast<uint64_t>(directory) + 7;
  }
}

// A zero page of what the start info says.
extern "C" uint64_t payload_zero_page(uint64_t start_info) {
  alignas(4096) static uint8_t page[4096];
  const auto zero_page = reinterpret_cast<uint64_t>(page);
  Store<uint32_t>(zero_page + 0x228, Load<uint32_t>(start_info + 24));  // command line
  Store<uint64_t>(zero_page + 0x070, Load<uint64_t>(start_info + 32));  // ACPI's root pointer
  return zero_page;
}

extern "C" void payload_set_up(uint64_t zero_page) {
  g_zero_page = zero_page;
  SetUpTask(0);
  Out8(0x21, 0xFF);  // the 8259s' lines, all masked
  Out8(0xA1, 0xFF);
  InterruptsOff();
}

extern "C" void payload_main() {
  for (unsigned vector = 0; vector < 32; ++vector) SetGate(vector);
  SetGate(kSpuriousVector);
  for (Constructor* constructor = payload_init_begin; constructor != payload_init_end; ++constructor) (*constructor)();
  EnableLocalApic();
  Main();
  Done();
}

extern "C" void payload_interrupt(Frame* frame) {
  const auto vector = static_cast<uint8_t>(frame->vector);
  if (vector < 32) {
    Print("exception ");
    PrintNumber(vector);
    Print(" error ");
    PrintHex(frame->error);
    Print(" at ");
    PrintHex(frame->rip);
    Print("\n");
    Fail("exception", "not expected");
    Done();
  }
  if (vector == kSpuriousVector) return;
  // Acknowledged first, so that a handler that never returns leaves other vectors be.
  EndOfInterrupt();
  if (g_handlers[vector] != nullptr) g_handlers[vector](vector);
}

}  // namespace payload
