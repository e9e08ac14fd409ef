// SPDX-License-Identifier: Apache-2.0
// From a place on the disk to a place in the file: the first- and second-level tables (QEMU, docs/interop/qcow2.txt,
// "Cluster mapping"). Image's thread. Entries are the file's: hostile; what comes out is aligned and in bounds.
#pragma once

#include <cstdint>
#include <functional>

#include "device-procs/common/block/qcow2/checkpoint.h"
#include "device-procs/common/block/qcow2/image_state.h"
#include "device-procs/common/block/qcow2/locks.h"
#include "device-procs/common/block/qcow2/refcounts.h"

namespace bulkhead::qcow2 {

// A piece of the disk that is the same throughout.
struct Extent {
  enum class Kind : uint8_t {
    kUnallocated,    // what the backing file says; zeroes where there is none
    kZero,           // zeroes
    kZeroAllocated,  // zeroes, and clusters that are kept for when it is written
    kData,
    kCompressed,  // one cluster
  };
  Kind kind = Kind::kUnallocated;
  uint64_t size_bytes = 0;
  uint64_t file_offset = 0;  // kData: of its first byte; kZeroAllocated: of its cluster's first byte
  bool owned = false;        // nothing else refers to its clusters: they may be written where they are
  uint64_t entry = 0;        // kCompressed

  bool InPlace() const { return kind == Kind::kData && owned; }
};

class Mapping {
 public:
  Mapping(ImageState& state, Refcounts& refcounts, Checkpointer& checkpointer)
      : state_(state), refcounts_(refcounts), checkpointer_(checkpointer) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // The extent at `offset`, cut at `size_bytes`.
  device::Task<Result<Extent>> Find(uint64_t offset, uint64_t size_bytes);
  // The same if that takes no reading; false if it does, or if the tables are wrong.
  bool FindNow(uint64_t offset, uint64_t size_bytes, Extent& extent);

  // The entries of `count` clusters from `first` on become what `change` makes of the old ones. Clusters without a
  // second-level table get one.
  using ChangeEntry = std::function<uint64_t(uint64_t index, uint64_t old)>;
  device::Task<Result<void>> Change(uint64_t first, uint64_t count, ChangeEntry change);
  // Whether the cluster has a second-level table.
  bool HasTable(uint64_t cluster) const {
    return (state_.l1.entries[cluster >> state_.layout().l2_bits()] & kOffsetMask) != 0;
  }
  // Takes away the references that an entry was.
  void Free(uint64_t old_entry);

 private:
  uint64_t SliceOffset(uint64_t table_offset, uint64_t cluster) const;
  Result<Extent> Describe(const Slice& slice, uint64_t offset, uint64_t size_bytes) const;
  // Makes the second-level table of an entry one that may be written.
  device::Task<Result<void>> OwnTable(uint64_t l1_index);
  device::Task<Result<void>> CopyTable(uint64_t from, uint64_t to);

  ImageState& state_;
  Refcounts& refcounts_;
  Checkpointer& checkpointer_;
  RangeLocks tables_;
};

}  // namespace bulkhead::qcow2
