// SPDX-License-Identifier: Apache-2.0
// memory=MiB: the E820 map is in order, without overlaps, and has that much memory but for what is reserved
// below 1 MiB; the first and last page of each usable range, those above 4 GiB too, keep what is written.
#include "tests/payload/lib/payload.h"

using namespace payload;

namespace {

constexpr uint64_t kMap = 0x2D0;
constexpr uint64_t kMapCount = 0x1E8;
constexpr uint64_t kEntryBytes = 20;
constexpr uint32_t kUsable = 1;
constexpr uint64_t kMiB = 1 << 20;

struct Entry {
  uint64_t base, bytes;
  uint32_t type;
};

Entry At(unsigned index) {
  const uint64_t at = ZeroPage() + kMap + index * kEntryBytes;
  return {Load<uint64_t>(at), Load<uint64_t>(at + 8), Load<uint32_t>(at + 16)};
}

// Below 1 MiB are the tables that this runs with: there words are put back, and only one at a time is
// changed.
bool Keeps(uint64_t address, uint64_t value) {
  const uint64_t before = Load<uint64_t>(address);
  Store<uint64_t>(address, value);
  const uint64_t after = Load<uint64_t>(address);
  Store<uint64_t>(address, before);
  return after == value;
}

bool Touch(const Entry& entry) {
  MapHigh(entry.base, entry.bytes);
  const uint64_t places[] = {entry.base, entry.base + 4088, entry.base + entry.bytes - 4096,
                             entry.base + entry.bytes - 8};
  for (const uint64_t place : places) {
    if (!Keeps(place, ~place) || !Keeps(place, place * 0x9E37'79B9'7F4A'7C15))
      return Fail("memory-touch", "memory forgets");
  }
  return true;
}

// Distinct values at both ends of all ranges at once: no two of them are the same memory.
bool Distinct(unsigned count) {
  const auto place = [](unsigned index) { return At(index).base + At(index).bytes - 16; };
  for (unsigned i = 0; i < count; ++i) {
    if (At(i).type == kUsable) Store<uint64_t>(place(i), 0x5EED'0000 + i);
  }
  for (unsigned i = 0; i < count; ++i) {
    if (At(i).type == kUsable &&
        !ExpectEqual("memory-touch", "range is other memory too", Load<uint64_t>(place(i)), 0x5EED'0000 + i)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void Main() {
  const unsigned count = Load<uint8_t>(ZeroPage() + kMapCount);
  if (!Expect("e820", "empty", count > 0)) return;
  uint64_t end = 0, usable = 0;
  for (unsigned i = 0; i < count; ++i) {
    const Entry entry = At(i);
    Print("range ");
    PrintHex(entry.base);
    Print(" + ");
    PrintHex(entry.bytes);
    PrintLine(" type ", uint64_t{entry.type});
    if (!Expect("e820", "out of order or overlapping", entry.base >= end && entry.bytes > 0)) return;
    end = entry.base + entry.bytes;
    if (entry.type == kUsable) usable += entry.bytes;
  }
  const uint64_t wanted = Parameter("memory", 0) * kMiB;
  if (wanted != 0 && !Expect("e820", "memory missing, or too much", usable <= wanted && usable + kMiB >= wanted))
    return;
  Pass("e820");
  for (unsigned i = 0; i < count; ++i) {
    if (At(i).type == kUsable && !Touch(At(i))) return;
  }
  if (Distinct(count)) Pass("memory-touch");
}
