// SPDX-License-Identifier: Apache-2.0
// Makes an empty qcow2 image in a file. The channel's thread; sizes and names are the user's.
#pragma once

#include <cstdint>
#include <string>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/format.h"

namespace bulkhead::qcow2 {

struct NewImage {
  uint64_t size_bytes = 0;
  uint32_t version = 3;
  Layout layout;
  bool lazy_refcounts = false;
  Compression compression = Compression::kZlib;
  std::string backing_file;  // empty: none
  std::string backing_format;
};

// The header comes last: a file that was cut off before is no image. The file is empty, or its old contents are given
// up; what it is longer than the new image stays. Gives the image's end in the file.
device::Task<Result<uint64_t>> CreateImage(device::BlockChannel& file, NewImage image);

}  // namespace bulkhead::qcow2
