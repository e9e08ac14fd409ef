// SPDX-License-Identifier: Apache-2.0
// Pieces of scattered memory. Pure; the memory may be the guest's.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace bulkhead::qcow2 {

inline uint64_t SizeOf(std::span<const iovec> vectors) {
  uint64_t size = 0;
  for (const iovec& vector : vectors) size += vector.iov_len;
  return size;
}

// Calls `take(memory, bytes)` for each piece of [from, from + size_bytes).
template <typename Take>
void ForEachPiece(std::span<const iovec> vectors, uint64_t from, uint64_t size_bytes, Take take) {
  for (const iovec& vector : vectors) {
    if (size_bytes == 0) return;
    if (from >= vector.iov_len) {
      from -= vector.iov_len;
      continue;
    }
    const uint64_t step = std::min<uint64_t>(vector.iov_len - from, size_bytes);
    take(static_cast<std::byte*>(vector.iov_base) + from, step);
    from = 0;
    size_bytes -= step;
  }
}

inline std::vector<iovec> Piece(std::span<const iovec> vectors, uint64_t from, uint64_t size_bytes) {
  std::vector<iovec> piece;
  ForEachPiece(vectors, from, size_bytes, [&](std::byte* memory, uint64_t bytes) { piece.push_back({memory, bytes}); });
  return piece;
}

inline void Zero(std::span<const iovec> vectors) {
  for (const iovec& vector : vectors) std::memset(vector.iov_base, 0, vector.iov_len);
}

inline void CopyTo(std::span<const iovec> vectors, const std::byte* from) {
  for (const iovec& vector : vectors) {
    std::memcpy(vector.iov_base, from, vector.iov_len);
    from += vector.iov_len;
  }
}

}  // namespace bulkhead::qcow2
