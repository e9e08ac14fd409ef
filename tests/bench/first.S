// SPDX-License-Identifier: Apache-2.0
// The guest of tests/bench/first_guest.py: the first instructions of a kernel say "F" on the debug port, then it sleeps for
// good. Entered by PVH (the x86/HVM direct boot ABI of Xen), which all the compared VMMs know. The port is QEMU's
// default 0xE9, so that SeaBIOS, which writes to 0x402 when something is there, does not; then Bulkhead's.
.section .note.pvh, "a", @note
.balign 4
  .long 2f - 1f
  .long 4f - 3f
  .long 18                 // XEN_ELFNOTE_PHYS32_ENTRY
1: .asciz "Xen"
2: .balign 4
3: .long first
4: .balign 4

.text
.code32
.globl first
first:
  mov $'F', %al
  out %al, $0xE9
  mov $0x402, %dx
  out %al, %dx
sleep:
  cli
  hlt
  jmp sleep
