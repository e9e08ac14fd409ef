// SPDX-License-Identifier: Apache-2.0
// Guest physical addresses, and where guest memory lies. Any process, any thread.
#pragma once

#include <compare>
#include <cstdint>

namespace bulkhead {

// A guest physical address.
struct Gpa {
  uint64_t value = 0;
  constexpr Gpa operator+(uint64_t bytes) const { return Gpa{value + bytes}; }
  constexpr auto operator<=>(const Gpa&) const = default;
};

// A contiguous piece of guest RAM and where it lies in the memory file.
struct MemoryRegion {
  Gpa base;
  uint64_t size_bytes = 0;
  uint64_t file_offset = 0;
};

inline constexpr uint64_t kGuestPageBytes = 4096;

}  // namespace bulkhead
