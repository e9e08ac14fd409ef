// SPDX-License-Identifier: Apache-2.0
// MSI-X with the entropy device as source: a thousand interrupts into CPL 3, then a masked vector whose
// pending bit is set and which fires once it is unmasked, then the function mask.
#include "tests/payload/lib/apic.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr uint8_t kVector = kFirstVector;
constexpr unsigned kInterrupts = 1000;
VirtioDevice g_device;
VirtioQueue g_queue;
uint8_t g_bytes[16];
volatile unsigned g_count;

void Count(uint8_t) { g_count = g_count + 1; }

bool Request() {
  const Buffer buffer{g_bytes, sizeof g_bytes, true};
  g_queue.Add(&buffer, 1);
  g_queue.Notify();
  uint16_t head;
  uint32_t used;
  return Await([&] { return g_queue.TakeUsed(&head, &used); });
}

void Spinning() {
  for (unsigned i = 1; i <= kInterrupts; ++i) {
    if (!Expect("interrupts", "request not answered", Request())) return;
    if (!Expect("interrupts", "none came", Await([i] { return g_count >= i; }))) return;
    if (!ExpectEqual("interrupts", "one each", g_count, i)) return;
  }
  Pass("interrupts");
}

// Answered while masked one way or the other: pending, then delivered once on unmasking.
template <typename Mask>
void Masked(const char* name, Mask mask) {
  mask(true);
  const unsigned before = g_count;
  if (!Expect(name, "request not answered", Request())) return;
  if (!Expect(name, "pending bit not set", Await([] { return g_device.pci().MsixPending(0); }))) return;
  if (!ExpectEqual(name, "came in spite of the mask", g_count, before)) return;
  mask(false);
  if (!Expect(name, "did not come after unmasking", Await([before] { return g_count > before; }))) return;
  if (!ExpectEqual(name, "times", g_count, before + 1)) return;
  if (Expect(name, "pending bit stays", !g_device.pci().MsixPending(0))) Pass(name);
}

void NewRoute() {
  static volatile unsigned count;
  SetHandler(kVector + 1, [](uint8_t) { count = count + 1; });
  g_device.pci().SetMsixVector(0, kVector + 1, LocalApicId(), false);
  const unsigned before = g_count;
  if (!Expect("reroute", "request not answered", Request())) return;
  if (!Expect("reroute", "none at the new vector", Await([] { return count == 1; }))) return;
  if (ExpectEqual("reroute", "at the old vector", g_count, before)) Pass("reroute");
}

}  // namespace

void Main() {
  if (!g_device.Find(kVirtioRng)) {
    Fail("interrupts", "no entropy device");
    return;
  }
  if (!Expect("interrupts", "no MSI-X capability", g_device.pci().msix != 0)) return;
  g_device.pci().SetMsix(true, false);
  g_device.pci().SetMsixVector(0, kVector, LocalApicId(), false);
  if (!Expect("interrupts", "features refused", g_device.Start(0))) return;
  if (!Expect("interrupts", "queue refused", g_device.SetUpQueue(0, &g_queue, 0))) return;
  g_device.Ready();
  SetHandler(kVector, Count);
  InterruptsOn();
  Spinning();
  Masked("vector-mask", [](bool masked) { g_device.pci().MaskMsixVector(0, masked); });
  Masked("function-mask", [](bool masked) { g_device.pci().SetMsix(true, masked); });
  NewRoute();
}
