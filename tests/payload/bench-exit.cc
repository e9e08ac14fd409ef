// SPDX-License-Identifier: Apache-2.0
// What an access costs that a device answers, under any VMM that enters a kernel by PVH: n=N (10000) reads of the
// serial port's scratch register and of a virtio register, in cycles; and how many cycles each of as many writes takes,
// until a read behind them is answered, so that posted ones are done. "begin" and "end" tell the clock, so that who
// reads them can tell how fast it runs. Then it sleeps for good.
#include "tests/payload/lib/samples.h"
#include "tests/payload/lib/virtio.h"

using namespace payload;

PAYLOAD_PVH;

namespace {

Samples g_samples;
unsigned g_count;

template <typename Access>
void Measure(const char* name, Access access) {
  PrintLine("next ", name);
  PauseForReader();
  g_samples.Clear();
  for (unsigned i = 0; i < g_count; ++i) {
    const uint64_t begun = Tsc();
    access();
    g_samples.Add(Tsc() - begun);
  }
  g_samples.Print(name);
  PauseForReader();
}

template <typename Write, typename Read>
void MeasurePosted(const char* name, Write write, Read read) {
  PrintLine("next ", name);
  PauseForReader();
  const uint64_t begun = Tsc();
  for (unsigned i = 0; i < g_count; ++i) write();
  read();
  PrintLine("bench ", name, " each ", (Tsc() - begun) / g_count);
  PauseForReader();
}

bool Run() {
  g_count = static_cast<unsigned>(Parameter("n", 10'000));
  if (g_count == 0 || g_count > Samples::kMost) return Fail("bench-exit", "n= is not between 1 and 100000");
  static VirtioDevice device;
  if (!device.Find(kVirtioRng) && !device.Find(kVirtioBlock)) return Fail("bench-exit", "no virtio function");
  constexpr uint16_t kScratch = 0x3FF;
  const uint64_t feature_select = device.common() + kDeviceFeatureSelect;
  PrintLine("begin ", Tsc());
  Measure("pio-read", [] { In8(kScratch); });
  Measure("mmio-read", [feature_select] { Load<uint32_t>(feature_select); });
  MeasurePosted(
      "pio-write", [] { Out8(kScratch, 0x5A); }, [] { In8(kScratch); });
  MeasurePosted(
      "mmio-write", [feature_select] { Store<uint32_t>(feature_select, 0); },
      [feature_select] { Load<uint32_t>(feature_select); });
  PrintLine("end ", Tsc());
  return true;
}

}  // namespace

void Main() {
  if (!Run()) Done();
  Sleep();
}
