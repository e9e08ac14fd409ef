// SPDX-License-Identifier: Apache-2.0
// A vCPU's start state in the processor's own terms, with no word of how the host runs it. vcpu-runner, boot.
#pragma once

#include <cstdint>

namespace bulkhead::runner {

// A segment as the processor caches it (Intel SDM vol. 3 §3.4.3; AMD APM vol. 2 §4.5).
struct Segment {
  uint64_t base = 0;
  uint32_t limit = 0;
  uint16_t selector = 0;
  uint8_t type = 0;  // descriptor type bits 3..0
  bool code_or_data = true;
  uint8_t dpl = 0;
  bool present = true;
  bool long_mode = false;    // L
  bool default_big = false;  // D/B
  bool granular = false;     // G
};

struct DescriptorTable {
  uint64_t base = 0;
  uint16_t limit = 0;
};

// What the boot protocols prescribe for the boot processor; anything not named keeps its reset value.
struct StartState {
  uint64_t rip = 0;
  uint64_t rsp = 0;
  uint64_t rbx = 0;
  uint64_t rsi = 0;
  uint64_t rflags = 2;  // bit 1 always reads as one
  uint64_t cr0 = 0;
  uint64_t cr3 = 0;
  uint64_t cr4 = 0;
  uint64_t efer = 0;
  Segment code;
  Segment data;  // DS, ES, SS, FS, GS
  Segment task;  // TR: VMX entry wants a busy 32- or 64-bit TSS
  DescriptorTable gdt;
  DescriptorTable idt;
};

}  // namespace bulkhead::runner
