// SPDX-License-Identifier: Apache-2.0
// The entropy device fills what it is given, and not twice with the same bytes.
#include <initializer_list>

#include "tests/payload/lib/virtio.h"

using namespace payload;

void Main() {
  static VirtioDevice device;
  static VirtioQueue queue;
  static uint8_t first[256], second[256];
  if (!device.Find(kVirtioRng)) {
    Fail("rng", "no entropy device");
    return;
  }
  if (!Expect("rng", "features refused", device.Start(0))) return;
  if (!Expect("rng", "queue refused", device.SetUpQueue(0, &queue))) return;
  device.Ready();
  for (uint8_t* bytes : {first, second}) {
    const Buffer buffer{bytes, sizeof first, true};
    uint32_t used = 0;
    if (!Expect("rng", "no answer", Transact(&queue, &buffer, 1, &used))) return;
    if (!Expect("rng", "used length is nothing or too much", used > 0 && used <= sizeof first)) return;
  }
  unsigned same = 0;
  for (unsigned i = 0; i < 16; ++i) same += first[i] == second[i];
  if (Expect("rng", "twice the same", same < 8)) Pass("rng");
}
