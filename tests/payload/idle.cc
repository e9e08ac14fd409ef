// SPDX-License-Identifier: Apache-2.0
// Says "idle" and does nothing for good: mode=halt (the default) halts, mode=spin spins at CPL 3.
#include "tests/payload/lib/payload.h"

using namespace payload;

void Main() {
  char mode[8] = "halt";
  TextParameter("mode", mode, sizeof mode);
  Print("idle\n");
  if (TextEquals(mode, "halt")) Sleep();
  for (;;) Pause();
}
