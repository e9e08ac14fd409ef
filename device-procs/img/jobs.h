// SPDX-License-Identifier: Apache-2.0
// What can be done with images as a whole. Worker thread; what is in the images is hostile.
#pragma once

#include <string>
#include <vector>

#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/block/qcow2/check.h"
#include "device-procs/common/block/qcow2/create.h"
#include "device-procs/common/block/qcow2/snapshots.h"
#include "device-procs/img/worker_thread.h"

namespace bulkhead::img {

// Opens an image, unless it is.
device::Task<Result<void>> Open(OpenImage& image);

struct MapEntry {
  uint64_t start = 0;
  device::BlockExtent extent;
};
// The extents from `offset` on, at most some thousands; those that continue each other are one.
device::Task<Result<std::vector<MapEntry>>> Map(OpenImage& image, uint64_t offset);

enum class Preallocation : uint8_t { kOff, kMetadata, kFalloc, kFull };
device::Task<Result<void>> Create(OpenImage& image, qcow2::NewImage options, Preallocation preallocation);

struct Comparison {
  bool same = true;
  bool sizes_differ = false;
  uint64_t offset = 0;  // of the first difference
};
device::Task<Result<Comparison>> Compare(OpenImage& first, OpenImage& second, bool strict, Progress& progress);

// What the topmost file has itself goes into the one below it, which is open for writing.
device::Task<Result<void>> Commit(OpenImage& top, OpenImage& below, Progress& progress);
// What `image` reads otherwise than `over` does becomes its own.
device::Task<Result<void>> Rebase(OpenImage& image, OpenImage& over, Progress& progress);

}  // namespace bulkhead::img
