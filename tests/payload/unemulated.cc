// SPDX-License-Identifier: Apache-2.0
// Executes cmpxchg16b at CPL 0, which a KVM without hardware virtualization cannot do; "done" where it can.
#include "tests/payload/lib/payload.h"

using namespace payload;

void Main() {
  RunAtCpl0([] {
    alignas(16) static uint64_t pair[2];
    asm volatile("lock cmpxchg16b %0" : "+m"(pair) : "a"(0), "d"(0), "b"(1), "c"(0) : "cc", "memory");
  });
  Pass("executed");
}
