// SPDX-License-Identifier: Apache-2.0
// Whether the tables of an image agree with each other: counts what refers to each cluster and compares that with its
// refcount; looks at the flags that depend on it. Works in windows of the file, so that memory is bounded however large
// the file is. The image's thread, while nothing else uses the image. Everything in the file is hostile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device-procs/common/block/qcow2/qcow2_channel.h"

namespace bulkhead::qcow2 {

enum class Repair : uint8_t { kNone, kLeaks, kAll };

struct CheckReport {
  uint64_t leaks = 0;        // clusters that count as used and are not
  uint64_t corruptions = 0;  // what loses data when it is written to
  uint64_t leaks_fixed = 0;
  uint64_t corruptions_fixed = 0;
  uint64_t image_end = 0;       // bytes
  uint64_t total_clusters = 0;  // of the disk
  uint64_t allocated_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t compressed_clusters = 0;
  std::vector<std::string> messages;  // the first ones
};

// The image was opened with OpenOptions::repair if it is to be repaired. What was repaired is durable at the end.
device::Task<Result<CheckReport>> Check(Qcow2Channel& image, Repair repair);

}  // namespace bulkhead::qcow2
