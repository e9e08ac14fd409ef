// SPDX-License-Identifier: Apache-2.0
// How long an interrupt of a device takes to the guest's handler, under any VMM that enters a kernel by PVH: n=N (2000)
// requests to the entropy device, one at a time, each answered by MSI-X while the guest looks at the used ring at
// CPL 3.
//
//   used      from the answer's being seen in the used ring to the handler; 0 where the handler was the first to see it
//   request   from the notification to the handler
//
// In cycles. "begin" and "end" tell the clock, so that who reads them can tell how fast it runs. Then it sleeps for
// good.
#include "tests/payload/lib/apic.h"
#include "tests/payload/lib/samples.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

PAYLOAD_PVH;

namespace {

constexpr uint8_t kVector = kFirstVector;
constexpr uint16_t kQueueSlots = 8;  // QEMU offers no more
VirtioDevice g_device;
VirtioQueue g_queue;
uint8_t g_bytes[8];
volatile uint64_t g_handled;  // when; 0: not yet
Samples g_used, g_request;

bool Start() {
  if (!g_device.Find(kVirtioRng)) return Fail("bench-irq", "no entropy device");
  if (!Expect("bench-irq", "no MSI-X", g_device.pci().msix_table != 0)) return false;
  g_device.pci().SetMsix(true, false);
  g_device.pci().SetMsixVector(0, kVector, LocalApicId(), false);
  if (!Expect("bench-irq", "features refused", g_device.Start(0))) return false;
  if (!Expect("bench-irq", "queue refused", g_device.SetUpQueue(0, &g_queue, 0, kQueueSlots))) return false;
  g_device.Ready();
  SetHandler(kVector, [](uint8_t) { g_handled = Tsc(); });
  InterruptsOn();
  return true;
}

bool Request() {
  const Buffer buffer{g_bytes, sizeof g_bytes, true};
  g_handled = 0;
  g_queue.Add(&buffer, 1);
  const uint64_t begun = Tsc();
  g_queue.Notify();
  if (!AwaitUndisturbed([] { return g_queue.HasUsed(); })) return Fail("bench-irq", "a request is not answered");
  const uint64_t seen = Tsc();
  if (!AwaitUndisturbed([] { return g_handled != 0; })) return Fail("bench-irq", "no interrupt comes");
  g_used.Add(g_handled > seen ? g_handled - seen : 0);
  g_request.Add(g_handled - begun);
  uint16_t head;
  uint32_t bytes;
  return Expect("bench-irq", "what was used is gone", g_queue.TakeUsed(&head, &bytes));
}

bool Run() {
  const uint64_t count = Parameter("n", 2000);
  if (!Start()) return false;
  PrintLine("begin ", Tsc());
  for (uint64_t i = 0; i < count; ++i) {
    if (!Request()) return false;
  }
  g_used.Print("used");
  g_request.Print("request");
  PrintLine("end ", Tsc());
  return true;
}

}  // namespace

void Main() {
  if (!Run()) Done();
  Sleep();
}
