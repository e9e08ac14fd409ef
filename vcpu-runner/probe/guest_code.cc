// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/probe/guest_code.h"

// Each piece stands between two labels in read-only data and is copied to kCode (or kApCode): position-independent.
// RBX starts as 0, RSI as kScratch.
#define BULKHEAD_GUEST_CODE(name, bits, code)                                                            \
  asm(".pushsection .rodata\n.code" #bits "\nbulkhead_guest_" #name ":\n" code "\nbulkhead_guest_" #name \
      "_end:\n.code64\n.popsection\n");                                                                  \
  extern "C" const std::byte bulkhead_guest_##name[];                                                    \
  extern "C" const std::byte bulkhead_guest_##name##_end[];

#define BULKHEAD_DONE "mov $1, %bl\nmov %bl, %al\nout %al, $0x80\n1: hlt\njmp 1b\n"

BULKHEAD_GUEST_CODE(loop0, 64, "mov $100000, %ecx\n2: dec %ecx\njnz 2b\n" BULKHEAD_DONE)

// To CPL 3 by iretq with IOPL 3, so that the loop there may write the port.
BULKHEAD_GUEST_CODE(loop3, 64,
                    "pushq $0x1b\npushq $0x30000\npushq $0x3002\npushq $0x23\n"
                    "lea 3f(%rip), %rax\npushq %rax\niretq\n"
                    "3: mov $100000, %ecx\n2: dec %ecx\njnz 2b\nmov $1, %al\nout %al, $0x80\n1: jmp 1b\n")

BULKHEAD_GUEST_CODE(cmpxchg16b, 64, "xor %eax, %eax\nxor %edx, %edx\nlock cmpxchg16b (%rsi)\n" BULKHEAD_DONE)

// CR4.OSXSAVE, then x87 and SSE state into the scratch page.
BULKHEAD_GUEST_CODE(xsave, 64,
                    "mov %cr4, %rax\nor $0x40600, %rax\nmov %rax, %cr4\n"
                    "xor %ecx, %ecx\nxor %edx, %edx\nmov $3, %eax\nxsetbv\nxsave (%rsi)\nxrstor (%rsi)\n" BULKHEAD_DONE)

// The IDT's entry 3 points 64 bytes into the code.
BULKHEAD_GUEST_CODE(breakpoint, 64, "int3\n1: hlt\njmp 1b\n.org bulkhead_guest_breakpoint + 64\n" BULKHEAD_DONE)

BULKHEAD_GUEST_CODE(start_processor, 64,
                    "mov $0xfee00000, %edi\nmovl $0x1ff, 0xf0(%rdi)\n"
                    "movl $0x01000000, 0x310(%rdi)\nmovl $0x4500, 0x300(%rdi)\n"
                    "movl $0x01000000, 0x310(%rdi)\nmovl $0x4608, 0x300(%rdi)\n"
                    "1: hlt\njmp 1b\n")

BULKHEAD_GUEST_CODE(started_processor, 16, "mov $1, %al\nout %al, $0x81\n1: hlt\njmp 1b\n")

// Vector 0x51 is bit 17 of the third interrupt request register.
BULKHEAD_GUEST_CODE(await_interrupt, 64,
                    "mov $0xfee00000, %edi\nmovl $0x1ff, 0xf0(%rdi)\nmov $1, %al\nout %al, $0x81\n"
                    "2: testl $0x20000, 0x220(%rdi)\njz 2b\n" BULKHEAD_DONE)

BULKHEAD_GUEST_CODE(dirty_one_page, 64, "movl $1, 0x50000\n" BULKHEAD_DONE)

namespace bulkhead::probe {

#define BULKHEAD_SPAN(name)                         \
  std::span<const std::byte>(bulkhead_guest_##name, \
                             static_cast<size_t>(bulkhead_guest_##name##_end - bulkhead_guest_##name))

std::span<const std::byte> LoopAtCpl0() { return BULKHEAD_SPAN(loop0); }
std::span<const std::byte> LoopAtCpl3() { return BULKHEAD_SPAN(loop3); }
std::span<const std::byte> Cmpxchg16b() { return BULKHEAD_SPAN(cmpxchg16b); }
std::span<const std::byte> Xsave() { return BULKHEAD_SPAN(xsave); }
std::span<const std::byte> Breakpoint() { return BULKHEAD_SPAN(breakpoint); }
std::span<const std::byte> StartProcessor() { return BULKHEAD_SPAN(start_processor); }
std::span<const std::byte> StartedProcessor() { return BULKHEAD_SPAN(started_processor); }
std::span<const std::byte> AwaitInterrupt() { return BULKHEAD_SPAN(await_interrupt); }
std::span<const std::byte> DirtyOnePage() { return BULKHEAD_SPAN(dirty_one_page); }

}  // namespace bulkhead::probe
