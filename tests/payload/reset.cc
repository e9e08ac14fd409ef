// SPDX-License-Identifier: Apache-2.0
// how=cf9, i8042 or triple: asks for a reset that way. Nothing is printed after "resetting" where it is
// granted.
#include "tests/payload/lib/payload.h"

using namespace payload;

namespace {

// A breakpoint with no interrupt table to find a handler in, nor one for the faults that follow.
void TripleFault() {
  static const struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } kEmpty = {0, 0};
  asm volatile("lidt %0\n\tud2" ::"m"(kEmpty) : "memory");
}

}  // namespace

void Main() {
  char how[16] = "cf9";
  TextParameter("how", how, sizeof how);
  PrintLine("resetting by ", static_cast<const char*>(how));
  if (TextEquals(how, "cf9")) {
    Out8(0xCF9, 0x02);
    Out8(0xCF9, 0x06);
  } else if (TextEquals(how, "i8042")) {
    Out8(0x64, 0xFE);
  } else if (TextEquals(how, "triple")) {
    RunAtCpl0(TripleFault);
  } else {
    Fail("reset", "how= is none of cf9, i8042, triple");
    return;
  }
  Await([] { return false; }, 2000);
  Fail("reset", "still running two seconds later");
}
