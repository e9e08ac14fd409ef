// SPDX-License-Identifier: Apache-2.0
// The smallest guest: says hello on both consoles and powers off.
#include "tests/payload/lib/payload.h"

void Main() {
  payload::MirrorToSerial(true);
  payload::Print("hello\n");
  payload::Pass("hello");
}
