// SPDX-License-Identifier: Apache-2.0
// cpus=N: the MADT, found by RSDP and XSDT with all checksums right, names N processors, and each of them
// starts, has its APIC id, counts a number up together with the others and takes an interrupt.
#include "tests/payload/lib/acpi.h"
#include "tests/payload/lib/apic.h"

using namespace payload;

namespace {

constexpr unsigned kRounds = 10'000;
constexpr uint8_t kVector = kFirstVector;
uint32_t g_apic_ids[kMaxCpus];
volatile uint32_t g_seen_ids[kMaxCpus];
uint32_t g_sum;
uint32_t g_finished;
uint32_t g_interrupts;

void CountUp(uint32_t cpu) {
  g_seen_ids[cpu] = LocalApicId();
  InterruptsOn();
  for (unsigned i = 0; i < kRounds; ++i) __atomic_fetch_add(&g_sum, 1, __ATOMIC_SEQ_CST);
  __atomic_fetch_add(&g_finished, 1, __ATOMIC_SEQ_CST);
}

uint32_t Read(const uint32_t* value) { return __atomic_load_n(value, __ATOMIC_SEQ_CST); }

// Usable processors of the MADT (ACPI 6.4 §5.2.12.2).
bool ReadMadt(unsigned* count) {
  const uint64_t madt = FindAcpiTable("smp-madt", "APIC");
  if (madt == 0) return false;
  if (!ExpectEqual("smp-madt", "local APIC address", Load<uint32_t>(madt + 36), kLocalApic)) return false;
  bool has_io_apic = false;
  const uint64_t end = madt + Load<uint32_t>(madt + 4);
  for (uint64_t at = madt + 44; at < end; at += Load<uint8_t>(at + 1)) {
    if (!Expect("smp-madt", "entry of length 0 or beyond the end",
                Load<uint8_t>(at + 1) >= 2 && at + Load<uint8_t>(at + 1) <= end)) {
      return false;
    }
    const uint8_t type = Load<uint8_t>(at);
    if (type == 1) has_io_apic = has_io_apic || Load<uint32_t>(at + 4) == kIoApic;
    if (type != 0 || (Load<uint32_t>(at + 4) & 1) == 0) continue;
    if (!Expect("smp-madt", "more processors than 64", *count < kMaxCpus)) return false;
    g_apic_ids[(*count)++] = Load<uint8_t>(at + 3);
  }
  if (!Expect("smp-madt", "no I/O APIC at its address", has_io_apic)) return false;
  return ExpectEqual("smp-madt", "first processor", g_apic_ids[0], LocalApicId());
}

bool StartAll(unsigned count) {
  for (unsigned cpu = 1; cpu < count; ++cpu) {
    if (!StartCpu(g_apic_ids[cpu], cpu, CountUp)) return Fail("smp-start", "a processor does not start");
  }
  if (!Expect("smp-start", "not all finish counting", Await([count] { return Read(&g_finished) == count - 1; })))
    return false;
  if (!ExpectEqual("smp-start", "the sum", Read(&g_sum), kRounds * (count - 1))) return false;
  for (unsigned cpu = 1; cpu < count; ++cpu) {
    if (!ExpectEqual("smp-start", "APIC id", g_seen_ids[cpu], g_apic_ids[cpu])) return false;
  }
  return true;
}

}  // namespace

void Main() {
  unsigned count = 0;
  if (!ReadMadt(&count)) return;
  if (!ExpectEqual("smp-madt", "processors", count, Parameter("cpus", 1))) return;
  Pass("smp-madt");
  SetHandler(kVector, [](uint8_t) { __atomic_fetch_add(&g_interrupts, 1, __ATOMIC_SEQ_CST); });
  if (!StartAll(count)) return;
  Pass("smp-start");
  for (unsigned cpu = 1; cpu < count; ++cpu) {
    SendIpi(g_apic_ids[cpu], kVector);
    if (!Expect("smp-ipi", "not taken", Await([cpu] { return Read(&g_interrupts) == cpu; }))) return;
  }
  Pass("smp-ipi");
}
