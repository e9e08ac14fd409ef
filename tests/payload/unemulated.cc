// SPDX-License-Identifier: Apache-2.0
// Executes cmpxchg16b at CPL 0 on a device's registers, which no KVM can do.
#include "tests/payload/lib/payload.h"
#include "tests/payload/lib/pci.h"

using namespace payload;

void Main() {
  RunAtCpl0([] {
    asm volatile("lock cmpxchg16b %0"
                 : "+m"(*reinterpret_cast<volatile unsigned __int128*>(kEcam))
                 : "a"(0), "d"(0), "b"(1), "c"(0)
                 : "cc", "memory");
  });
  Pass("executed");
}
