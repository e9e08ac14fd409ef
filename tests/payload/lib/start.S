// SPDX-License-Identifier: Apache-2.0
// Entry of a payload and of its further processors, interrupt stubs and page tables. Where a CPU without
// hardware virtualization runs the guest, only CPL 3 is fast: main() and all it calls run there with IOPL 3,
// interrupt handlers at CPL 0. Selectors: 0x08 code 0, 0x10 data 0, 0x1B data 3, 0x23 code 3, 0x28 + 16 n the
// task segment of processor n.

.section .text.start, "ax"
.code64
.globl payload_start
payload_start:
  cli
  lea payload_pml4(%rip), %rax
  mov %rax, %cr3
  lea payload_stacks + 0x4000(%rip), %rsp
  mov %rsi, %rdi
  call payload_set_up
  xor %edi, %edi
  lea payload_main(%rip), %rsi
  // RDI: the processor's number. RSI: what it runs at CPL 3, with RDI as argument.
enter_user:
  lgdt payload_gdt_pointer(%rip)
  lidt payload_idt_pointer(%rip)
  mov $0x10, %eax
  mov %eax, %ss
  mov $0x1B, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %edi, %eax
  shl $4, %eax
  add $0x28, %eax
  ltr %ax
  // Each processor has 32 KiB: 16 for CPL 0, then 16 for CPL 3.
  mov %edi, %eax
  inc %eax
  shl $15, %rax
  lea payload_stacks(%rip), %rcx
  add %rcx, %rax
  sub $8, %rax       // as after a call
  pushq $0x1B
  push %rax
  pushq $0x3202      // IOPL 3, interrupts on: the task priority register holds them off
  pushq $0x23
  push %rsi
  iretq

// Entry by PVH: 32-bit protected mode without paging, EBX points to the start info.
.section .text.pvh, "ax"
.code32
.globl payload_pvh_start
payload_pvh_start:
  cli
  mov $payload_stacks + 0x4000, %esp
  lgdtl payload_gdt_pointer
  mov $0x20, %eax    // CR4.PAE
  mov %eax, %cr4
  mov $payload_pml4, %eax
  mov %eax, %cr3
  mov $0xC0000080, %ecx
  xor %edx, %edx
  mov $0x100, %eax   // EFER.LME
  wrmsr
  mov $0x80000011, %eax
  mov %eax, %cr0
  ljmpl $0x08, $pvh_long
.code64
pvh_long:
  mov $0x10, %eax
  mov %eax, %ss
  mov %ebx, %edi
  call payload_zero_page
  mov %rax, %rsi
  jmp payload_start

// Copied to kTrampoline below 1 MiB, where a processor starts in real mode. The variables at its end are
// filled in.
.section .rodata
.globl payload_trampoline, payload_trampoline_end
payload_trampoline:
.code16
  cli
  mov %cs, %ax
  mov %ax, %ds
  lgdtl trampoline_gdt_pointer - payload_trampoline
  mov $0x20, %eax    // CR4.PAE
  mov %eax, %cr4
  mov trampoline_cr3 - payload_trampoline, %eax
  mov %eax, %cr3
  mov $0xC0000080, %ecx
  xor %edx, %edx
  mov $0x100, %eax   // EFER.LME
  wrmsr
  mov $0x80000011, %eax
  mov %eax, %cr0
  ljmpl $0x08, $(0x10000 + trampoline_long - payload_trampoline)
.code64
trampoline_long:
  mov $0x10, %eax
  mov %eax, %ss
  mov %eax, %ds
  mov %eax, %es
  mov 0x10000 + trampoline_cpu - payload_trampoline, %edi
  mov %edi, %eax
  shl $15, %rax
  lea payload_stacks + 0x4000, %rsp
  add %rax, %rsp
  mov $payload_ap_main, %rsi
  mov $enter_user, %rax
  jmp *%rax
.balign 8
trampoline_gdt:
  .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
trampoline_gdt_pointer:
  .word 23
  .long 0x10000 + trampoline_gdt - payload_trampoline
trampoline_cr3:
  .long payload_pml4
.globl trampoline_cpu
trampoline_cpu:
  .long 0
payload_trampoline_end:

// One stub of 16 bytes for each vector: exceptions without an error code push one.
.section .text
.code64
.balign 16
.globl payload_stubs
payload_stubs:
.set vector, 0
.rept 256
  .balign 16
  .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
  .else
  pushq $0
  .endif
  pushq $vector
  jmp interrupt_common
  .set vector, vector + 1
.endr
.balign 16
interrupt_common:
  push %rax
  push %rcx
  push %rdx
  push %rsi
  push %rdi
  push %r8
  push %r9
  push %r10
  push %r11
  mov %rsp, %rdi
  cld
  call payload_interrupt
  pop %r11
  pop %r10
  pop %r9
  pop %r8
  pop %rdi
  pop %rsi
  pop %rdx
  pop %rcx
  pop %rax
  add $16, %rsp
  iretq

// 4 GiB, one to one, in 2 MiB pages for CPL 3 (present, writable, user, large). Filled in by the assembler:
// at CPL 0 filling them would take long.
.data
.balign 4096
.globl payload_pml4, payload_pdpt
payload_pml4:
  .quad payload_pdpt + 7
  .fill 511, 8, 0
payload_pdpt:
  .quad payload_directories + 0x0007, payload_directories + 0x1007
  .quad payload_directories + 0x2007, payload_directories + 0x3007
  .fill 508, 8, 0
payload_directories:
  .set page, 0
  .rept 2048
  .quad page + 0x87
  .set page, page + 0x200000
  .endr

.globl payload_gdt, payload_idt
.balign 16
payload_gdt:
  .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
  .fill 64 * 2, 8, 0
payload_gdt_end:
payload_gdt_pointer:
  .word payload_gdt_end - payload_gdt - 1
  .quad payload_gdt
payload_idt_pointer:
  .word 256 * 16 - 1
  .quad payload_idt

.bss
.balign 4096
payload_idt:
  .skip 256 * 16
.globl payload_stacks
.balign 4096
payload_stacks:
  .skip 64 * 0x8000
