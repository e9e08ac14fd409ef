// SPDX-License-Identifier: Apache-2.0
// The one way any process reaches guest memory: bounds-checked copies, atomic loads and stores of ring indices, and
// translation of a checked range into pieces for I/O. Used by the vcpu-runner (boot) and by device processes (any
// thread; the object is immutable after construction). Every Gpa and size passed in is hostile. The bytes behind it
// can change at any moment: copy once, then check, then use.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "ipc/fd.h"
#include "ipc/result.h"

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

class GuestMemory {
 public:
  // Maps the regions of `file` shared and writable. Regions are page aligned, disjoint and ascending; they come from
  // the broker and are checked all the same.
  static Result<GuestMemory> Map(int file, std::span<const MemoryRegion> regions);

  GuestMemory(GuestMemory&&) noexcept = default;
  GuestMemory& operator=(GuestMemory&& other) noexcept {
    mappings_.swap(other.mappings_);
    return *this;
  }
  ~GuestMemory();

  // Whole range or nothing: EFAULT if any byte of [address, address + size) is not guest RAM, also on wrap-around.
  Result<void> Read(Gpa address, std::span<std::byte> to) const;
  Result<void> Write(Gpa address, std::span<const std::byte> from) const;
  Result<void> Fill(Gpa address, uint64_t size_bytes, std::byte value) const;
  bool Contains(Gpa address, uint64_t size_bytes) const;

  template <typename T>
  Result<T> ReadObject(Gpa address) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T object;
    if (auto result = Read(address, std::as_writable_bytes(std::span(&object, 1))); !result.ok()) return result.error();
    return object;
  }
  template <typename T>
  Result<void> WriteObject(Gpa address, const T& object) const {
    static_assert(std::is_trivially_copyable_v<T>);
    return Write(address, std::as_bytes(std::span(&object, 1)));
  }

  // Naturally aligned 16-bit ring fields (virtio 1.2 §2.7): acquire loads, release stores, little-endian.
  Result<uint16_t> LoadAcquire16(Gpa address) const;
  Result<void> StoreRelease16(Gpa address, uint16_t value) const;

  // Appends the pieces of [address, address + size_bytes) to `pieces`, for readv/writev-like I/O by this process; the
  // pieces stay valid as long as this object. One piece, or two where the range crosses from one region into the next.
  Result<void> Translate(Gpa address, uint64_t size_bytes, std::vector<iovec>& pieces) const;

  // For registering memory with the kernel only, as the CPU interface and vhost do: each region with its mapping in
  // this process.
  struct Mapping {
    MemoryRegion region;
    std::byte* host = nullptr;
  };
  std::span<const Mapping> mappings() const { return mappings_; }
  uint64_t size_bytes() const;

 private:
  GuestMemory() = default;
  // Runs visit(host pointer, bytes) over the pieces of the range once the whole range is known to be RAM.
  template <typename Visit>
  Result<void> ForEachPiece(Gpa address, uint64_t size_bytes, Visit visit) const;

  std::vector<Mapping> mappings_;
};

}  // namespace bulkhead
