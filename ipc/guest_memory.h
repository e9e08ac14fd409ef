// SPDX-License-Identifier: Apache-2.0
// The one way any process reaches guest memory: bounds-checked copies, atomic loads and stores of ring indices, and
// translation of a checked range into pieces for I/O. Used by the vcpu-runner (boot) and by device processes (any
// thread; the object is immutable after set-up). Every Gpa and size passed in is hostile. The bytes behind it
// can change at any moment: copy once, then check, then use.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "ipc/dirty_log.h"
#include "ipc/fd.h"
#include "ipc/gpa.h"
#include "ipc/result.h"

namespace bulkhead {

class GuestMemory {
 public:
  // Maps the regions of `file` shared and writable. Regions are page aligned, disjoint and ascending; they come from
  // the broker and are checked all the same.
  static Result<GuestMemory> Map(int file, std::span<const MemoryRegion> regions);

  GuestMemory(GuestMemory&&) noexcept = default;
  GuestMemory& operator=(GuestMemory&& other) noexcept {
    mappings_.swap(other.mappings_);
    log_.swap(other.log_);
    std::swap(logging_, other.logging_);
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

  // From now on what is written through this object is marked in the log while that is on. Part of set-up.
  void LogWrites(DirtyLog log);
  // To be called after bytes were written past this object, into the pieces that Translate gave; of several pieces the
  // first `size_bytes` bytes. What is not guest memory counts, and is passed over.
  void NoteWritten(Gpa address, uint64_t size_bytes) const {
    if (logs_writes()) log_->Mark(address, size_bytes);
  }
  void NoteWritten(std::span<const iovec> pieces, uint64_t size_bytes) const {
    if (logs_writes()) MarkPieces(pieces, size_bytes);
  }
  // Null: nobody wants to know.
  const DirtyLog* log() const { return log_ ? &*log_ : nullptr; }
  // One load, and a branch that is always taken while nobody wants to know.
  bool logs_writes() const {
    // The compiler keeps it behind the write, DirtyLog::SwitchOn has the processor do so.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    return logging_->load(std::memory_order_relaxed) != 0;
  }

  // For registering memory with the kernel only, as the CPU interface and vhost do: each region with its mapping in
  // this process.
  struct Mapping {
    MemoryRegion region;
    std::byte* host = nullptr;
  };
  std::span<const Mapping> mappings() const { return mappings_; }
  uint64_t size_bytes() const;
  // The first address behind all of it.
  Gpa end() const;

 private:
  static constexpr std::atomic<uint32_t> kNotLogged{0};

  GuestMemory() = default;
  // Runs visit(host pointer, bytes) over the pieces of the range once the whole range is known to be RAM.
  template <typename Visit>
  Result<void> ForEachPiece(Gpa address, uint64_t size_bytes, Visit visit) const;

  void MarkPieces(std::span<const iovec> pieces, uint64_t size_bytes) const;

  std::vector<Mapping> mappings_;
  std::optional<DirtyLog> log_;
  const std::atomic<uint32_t>* logging_ = &kNotLogged;
};

}  // namespace bulkhead
