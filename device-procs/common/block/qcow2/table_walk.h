// SPDX-License-Identifier: Apache-2.0
// What the jobs on a whole image have in common: tables read past the cache, first-level tables put elsewhere. The
// image's thread, while nothing else uses the image. Entries are the file's: hostile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device-procs/common/block/qcow2/qcow2_channel.h"

namespace bulkhead::qcow2 {

// The clusters of the file that a second-level entry refers to; none is 0 clusters.
struct ClusterRange {
  uint64_t offset = 0;
  uint64_t clusters = 0;
};
ClusterRange RangeOf(uint64_t entry, const Layout& layout);

// A table as it is in the file. The cache has nothing of it that is not there yet: see Checkpointer::Settle.
device::Task<Result<std::vector<uint64_t>>> ReadEntries(ImageState& state, uint64_t offset, uint64_t entries);

// Writes a first-level table to a new place, which it gives (0 for an empty one); the header does not name it
// yet.
device::Task<Result<uint64_t>> WriteL1(Qcow2Channel& image, std::vector<uint64_t> entries);

// The disk gets this first-level table, of its own, and this size; the old table's clusters are given back, not what
// it refers to. Durable at the end.
device::Task<Result<void>> ReplaceL1(Qcow2Channel& image, std::vector<uint64_t> entries, uint64_t disk_bytes);

// The flags of the active tables that say that a cluster has one reference become true.
device::Task<Result<void>> UpdateCopied(Qcow2Channel& image);

// Every cluster becomes one that the backing file has.
device::Task<Result<void>> MakeEmpty(Qcow2Channel& image);
// What the header says of the backing file; empty names: there is none.
device::Task<Result<void>> SetBacking(Qcow2Channel& image, std::string file, std::string format);

// Makes the disk larger, or with `shrink` smaller: what lies beyond is given back.
device::Task<Result<void>> Resize(Qcow2Channel& image, uint64_t disk_bytes, bool shrink);

}  // namespace bulkhead::qcow2
