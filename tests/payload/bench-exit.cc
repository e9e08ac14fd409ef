// SPDX-License-Identifier: Apache-2.0
// What an access costs that a device process answers: n=N (10000) reads of the serial port's scratch register
// and of a virtio register, and as many posted writes. Cycles, or nanoseconds with tsc_khz=.
#include "tests/payload/lib/virtio.h"

using namespace payload;

namespace {

constexpr unsigned kMaxSamples = 100'000;
uint64_t g_samples[kMaxSamples];
unsigned g_count;
uint64_t g_tsc_khz;

uint64_t InUnits(uint64_t cycles) { return g_tsc_khz != 0 ? cycles * 1'000'000 / g_tsc_khz : cycles; }

// Heap sort.
void SiftDown(unsigned root, unsigned end) {
  for (unsigned child = 2 * root + 1; child < end; root = child, child = 2 * root + 1) {
    if (child + 1 < end && g_samples[child] < g_samples[child + 1]) ++child;
    if (g_samples[root] >= g_samples[child]) return;
    const uint64_t swapped = g_samples[root];
    g_samples[root] = g_samples[child];
    g_samples[child] = swapped;
  }
}

void Sort() {
  for (unsigned i = g_count / 2; i-- > 0;) SiftDown(i, g_count);
  for (unsigned end = g_count; end-- > 1;) {
    const uint64_t largest = g_samples[0];
    g_samples[0] = g_samples[end];
    g_samples[end] = largest;
    SiftDown(0, end);
  }
}

template <typename Access>
void Measure(const char* name, Access access) {
  for (unsigned i = 0; i < g_count; ++i) {
    const uint64_t begun = Tsc();
    access();
    g_samples[i] = Tsc() - begun;
  }
  Sort();
  PrintLine("bench ", name, " p50 ", InUnits(g_samples[g_count / 2]), " p99 ",
            InUnits(g_samples[g_count * 99ull / 100]), g_tsc_khz != 0 ? " ns" : " cycles");
}

// Until a read behind the writes is answered, so that those counted are done. The PM timer tells seconds.
template <typename Write, typename Read>
void MeasurePosted(const char* name, Write write, Read read) {
  uint64_t ticks = 0;
  uint32_t last = PmTimer();
  constexpr unsigned kBatch = 100;
  for (unsigned done = 0; done < g_count; done += kBatch) {
    for (unsigned i = 0; i < kBatch; ++i) write();
    if (done + kBatch >= g_count) read();
    const uint32_t now = PmTimer();
    ticks += (now - last) & 0xFF'FFFF;
    last = now;
  }
  const uint64_t writes = (g_count + kBatch - 1) / kBatch * kBatch;
  PrintLine("bench ", name, " ", writes * 3'579'545 / (ticks != 0 ? ticks : 1), " per second");
}

}  // namespace

void Main() {
  g_count = static_cast<unsigned>(Parameter("n", 10'000));
  if (g_count == 0 || g_count > kMaxSamples) {
    Fail("bench-exit", "n= is not between 1 and 100000");
    return;
  }
  g_tsc_khz = Parameter("tsc_khz", 0);
  static VirtioDevice device;
  if (!device.Find(kVirtioRng) && !device.Find(kVirtioBlock)) {
    Fail("bench-exit", "no virtio function");
    return;
  }
  constexpr uint16_t kScratch = 0x3FF;
  const uint64_t feature_select = device.common() + kDeviceFeatureSelect;
  Measure("pio-read", [] { In8(kScratch); });
  Measure("mmio-read", [feature_select] { Load<uint32_t>(feature_select); });
  MeasurePosted(
      "pio-write", [] { Out8(kScratch, 0x5A); }, [] { In8(kScratch); });
  MeasurePosted(
      "mmio-write", [feature_select] { Store<uint32_t>(feature_select, 0); },
      [feature_select] { Load<uint32_t>(feature_select); });
  Pass("bench-exit");
}
