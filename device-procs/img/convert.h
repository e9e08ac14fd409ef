// SPDX-License-Identifier: Apache-2.0
// Copies one disk, or several one behind the other, to another, of whatever formats. Worker thread, and its helpers for
// packing; what is in the images is hostile.
#pragma once

#include <vector>

#include "device-procs/img/worker_thread.h"

namespace bulkhead::img {

struct ConvertOptions {
  bool compress = false;
  unsigned requests = 8;
  uint64_t zero_run_bytes = 4096;  // 0: every byte of data is written
  bool target_reads_zero = false;
};
device::Task<Result<void>> Convert(std::vector<OpenImage*> from, OpenImage& to, ConvertOptions options,
                                   device::Offload& offload, Progress& progress);

}  // namespace bulkhead::img
