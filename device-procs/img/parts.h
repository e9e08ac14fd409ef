// SPDX-License-Identifier: Apache-2.0
// What jobs do with a part of an image. Worker thread; the bytes are hostile, and only carried.
#pragma once

#include "device-procs/img/worker_thread.h"

namespace bulkhead::img {

// What is copied or compared at one time.
constexpr uint64_t kChunkBytes = 1 << 20;

bool IsZero(const std::byte* bytes, size_t size);

// What lies past the end of the disk reads as zeroes: of two disks the shorter one counts as if they followed.
device::Task<Result<void>> ReadPart(OpenImage& image, uint64_t offset, std::byte* to, uint64_t size_bytes);
device::Task<Result<void>> WritePart(OpenImage& image, uint64_t offset, const std::byte* from, uint64_t size_bytes);
device::Task<Result<void>> ZeroPart(OpenImage& image, uint64_t offset, uint64_t size_bytes);
// Makes the image durable and leaves it as one that is not in use.
device::Task<Result<void>> Finish(OpenImage& image);

}  // namespace bulkhead::img
