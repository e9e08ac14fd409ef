// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/parts.h"

#include <algorithm>
#include <cstring>

#include "device-procs/common/block/block_task.h"

namespace bulkhead::img {

using device::Task;

bool IsZero(const std::byte* bytes, size_t size) {
  return size == 0 || (bytes[0] == std::byte{0} && std::memcmp(bytes, bytes + 1, size - 1) == 0);
}

Task<Result<void>> ReadPart(OpenImage& image, uint64_t offset, std::byte* to, uint64_t size_bytes) {
  const uint64_t end = image.chain->geometry().size_bytes;
  const uint64_t there = offset < end ? std::min(size_bytes, end - offset) : 0;
  std::memset(to + there, 0, size_bytes - there);
  if (there == 0) co_return Result<void>();
  const int error = co_await device::ReadFrom(*image.channel, offset, to, there);
  if (error != 0) co_return ErrnoError(error, "reading byte " + std::to_string(offset));
  co_return Result<void>();
}

Task<Result<void>> WritePart(OpenImage& image, uint64_t offset, const std::byte* from, uint64_t size_bytes) {
  const int error = co_await device::WriteTo(*image.channel, offset, from, size_bytes);
  if (error != 0) co_return ErrnoError(error, "writing byte " + std::to_string(offset));
  co_return Result<void>();
}

Task<Result<void>> ZeroPart(OpenImage& image, uint64_t offset, uint64_t size_bytes) {
  const int error = co_await device::WriteZeroesTo(*image.channel, offset, size_bytes, true);
  if (error != 0) co_return ErrnoError(error, "writing zeroes at byte " + std::to_string(offset));
  co_return Result<void>();
}

Task<Result<void>> Finish(OpenImage& image) {
  const int error = co_await device::FlushOf(*image.channel);
  if (error != 0) co_return ErrnoError(error, "flushing the image");
  Result<void> closed = co_await image.channel->Close();
  co_return closed;
}

}  // namespace bulkhead::img
