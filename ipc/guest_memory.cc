// SPDX-License-Identifier: Apache-2.0
#include "ipc/guest_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace bulkhead {
namespace {

Error OutOfRam() { return Error{EFAULT, "guest address range is not guest memory"}; }

}  // namespace

Result<GuestMemory> GuestMemory::Map(int file, std::span<const MemoryRegion> regions) {
  GuestMemory memory;
  Gpa next_free{0};
  for (const MemoryRegion& region : regions) {
    const bool aligned = (region.base.value | region.size_bytes | region.file_offset) % kGuestPageBytes == 0;
    if (!aligned || region.size_bytes == 0 || region.base < next_free ||
        region.base.value + region.size_bytes < region.base.value) {
      return Error{EINVAL, "guest memory regions are not aligned, ascending and disjoint"};
    }
    next_free = region.base + region.size_bytes;
    void* host = ::mmap(nullptr, region.size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file,
                        static_cast<off_t>(region.file_offset));
    if (host == MAP_FAILED) return ErrnoError(errno, "map guest memory");
    // Neither a core file of this process nor a fork of it may carry guest memory away.
    ::madvise(host, region.size_bytes, MADV_DONTDUMP);
    ::madvise(host, region.size_bytes, MADV_DONTFORK);
    memory.mappings_.push_back(Mapping{region, static_cast<std::byte*>(host)});
  }
  return memory;
}

GuestMemory::~GuestMemory() {
  for (const Mapping& mapping : mappings_) ::munmap(mapping.host, mapping.region.size_bytes);
}

uint64_t GuestMemory::size_bytes() const {
  uint64_t total = 0;
  for (const Mapping& mapping : mappings_) total += mapping.region.size_bytes;
  return total;
}

Gpa GuestMemory::end() const {
  return mappings_.empty() ? Gpa{0} : mappings_.back().region.base + mappings_.back().region.size_bytes;
}

template <typename Visit>
Result<void> GuestMemory::ForEachPiece(Gpa address, uint64_t size_bytes, Visit visit) const {
  for (const Mapping& mapping : mappings_) {
    if (size_bytes == 0) break;
    if (address < mapping.region.base) return OutOfRam();
    const uint64_t skip = address.value - mapping.region.base.value;
    if (skip >= mapping.region.size_bytes) continue;
    const uint64_t bytes = std::min(size_bytes, mapping.region.size_bytes - skip);
    visit(mapping.host + skip, bytes);
    address = address + bytes;
    size_bytes -= bytes;
  }
  if (size_bytes != 0) return OutOfRam();
  return {};
}

bool GuestMemory::Contains(Gpa address, uint64_t size_bytes) const {
  if (address.value + size_bytes < address.value) return false;
  return ForEachPiece(address, size_bytes, [](std::byte*, uint64_t) {}).ok();
}

Result<void> GuestMemory::Read(Gpa address, std::span<std::byte> to) const {
  if (!Contains(address, to.size())) return OutOfRam();
  std::byte* target = to.data();
  return ForEachPiece(address, to.size(), [&](const std::byte* host, uint64_t bytes) {
    std::memcpy(target, host, bytes);
    target += bytes;
  });
}

Result<void> GuestMemory::Write(Gpa address, std::span<const std::byte> from) const {
  if (!Contains(address, from.size())) return OutOfRam();
  const std::byte* source = from.data();
  auto written = ForEachPiece(address, from.size(), [&](std::byte* host, uint64_t bytes) {
    std::memcpy(host, source, bytes);
    source += bytes;
  });
  NoteWritten(address, from.size());
  return written;
}

Result<void> GuestMemory::Fill(Gpa address, uint64_t size_bytes, std::byte value) const {
  if (!Contains(address, size_bytes)) return OutOfRam();
  auto written = ForEachPiece(
      address, size_bytes, [&](std::byte* host, uint64_t bytes) { std::memset(host, static_cast<int>(value), bytes); });
  NoteWritten(address, size_bytes);
  return written;
}

Result<uint16_t> GuestMemory::LoadAcquire16(Gpa address) const {
  if (address.value % sizeof(uint16_t) != 0 || !Contains(address, sizeof(uint16_t))) return OutOfRam();
  uint16_t value = 0;
  // An aligned field never straddles two (page-aligned) regions, so there is exactly one piece.
  auto result = ForEachPiece(address, sizeof value, [&](std::byte* host, uint64_t) {
    value = std::atomic_ref(*reinterpret_cast<uint16_t*>(host)).load(std::memory_order_acquire);
  });
  if (!result.ok()) return result.error();
  return value;
}

Result<void> GuestMemory::StoreRelease16(Gpa address, uint16_t value) const {
  if (address.value % sizeof(uint16_t) != 0 || !Contains(address, sizeof(uint16_t))) return OutOfRam();
  auto written = ForEachPiece(address, sizeof value, [&](std::byte* host, uint64_t) {
    std::atomic_ref(*reinterpret_cast<uint16_t*>(host)).store(value, std::memory_order_release);
  });
  NoteWritten(address, sizeof value);
  return written;
}

Result<void> GuestMemory::Translate(Gpa address, uint64_t size_bytes, std::vector<iovec>& pieces) const {
  if (!Contains(address, size_bytes)) return OutOfRam();
  return ForEachPiece(address, size_bytes, [&](std::byte* host, uint64_t bytes) {
    pieces.push_back(iovec{host, bytes});
  });
}

void GuestMemory::LogWrites(DirtyLog log) {
  log_ = std::move(log);
  logging_ = &log_->on();
}

void GuestMemory::MarkPieces(std::span<const iovec> pieces, uint64_t size_bytes) const {
  for (const iovec& piece : pieces) {
    const uint64_t bytes = std::min<uint64_t>(size_bytes, piece.iov_len);
    size_bytes -= bytes;
    for (const Mapping& mapping : mappings_) {
      const auto skip = reinterpret_cast<uintptr_t>(piece.iov_base) - reinterpret_cast<uintptr_t>(mapping.host);
      if (skip < mapping.region.size_bytes) log_->Mark(mapping.region.base + skip, bytes);
    }
  }
}

}  // namespace bulkhead
