// SPDX-License-Identifier: Apache-2.0
// Which clusters of the file are in use: finds free ones, counts references up and down, adds refcount blocks and moves
// the refcount table to a larger place when they run out. Image's thread. What the blocks say is the file's: hostile.
#pragma once

#include <cstdint>
#include <vector>

#include "device-procs/common/block/qcow2/checkpoint.h"
#include "device-procs/common/block/qcow2/image_state.h"
#include "device-procs/common/block/qcow2/locks.h"

namespace bulkhead::qcow2 {

// Clusters that were free and have one reference now.
struct Allocation {
  uint64_t offset = 0;
  uint64_t clusters = 0;
  bool fresh = false;  // nothing was ever written there: it reads as zeroes
};

class Refcounts {
 public:
  Refcounts(ImageState& state, Checkpointer& checkpointer) : state_(state), checkpointer_(checkpointer) {}
  Refcounts(const Refcounts&) = delete;
  Refcounts& operator=(const Refcounts&) = delete;

  // One to `clusters` of them, side by side; no tables.
  device::Task<Result<Allocation>> Allocate(uint64_t clusters);
  // All of them, side by side: for tables that are larger than a cluster. What was in the cache of the place is gone.
  device::Task<Result<Allocation>> AllocateExactly(uint64_t clusters);
  // References of each of the clusters, all of which have some: one up or one down.
  device::Task<Result<void>> Increment(uint64_t offset, uint64_t clusters);
  device::Task<Result<void>> Decrement(uint64_t offset, uint64_t clusters);
  device::Task<Result<uint64_t>> Get(uint64_t offset);
  // For repairs: whatever it was. Where no block counts the cluster yet, the first cluster that one would count is
  // free.
  device::Task<Result<void>> Set(uint64_t offset, uint64_t count);
  bool HasBlock(uint64_t offset) const;
  // Decrement after the checkpoint that made them unnamed; punches holes where nothing is left.
  device::Task<Result<void>> GiveBack(std::vector<Freed> freed);

  void set_punch_holes(bool punch) { punch_holes_ = punch; }

 private:
  enum class Access : uint8_t { kLook, kChange, kMake };
  // The slice with the refcount of a cluster, read and ready to be changed as needed. Good until the caller next
  // suspends. Where the table has no block for it, kMake adds one, and the others give null.
  device::Task<Result<Slice*>> SliceOf(uint64_t cluster, Access access);
  device::Task<Result<void>> Change(uint64_t cluster, uint64_t count, bool up);
  device::Task<Result<void>> AddBlock(uint64_t block);
  device::Task<Result<void>> MakeBlock(uint64_t block);
  device::Task<Result<void>> MoveTable(uint64_t block);
  // Counts the run of free clusters from `cluster` on in its slice, at most `wanted`, after skipping used ones.
  bool FindFree(const Slice& slice, uint64_t& cluster, uint64_t wanted, uint64_t& found) const;
  Result<void> CheckPlace(uint64_t cluster, uint64_t count);
  Error InUseAndFree(uint64_t cluster);
  uint64_t slice_entries() const { return state_.cache->slice_bytes() * 8 >> state_.layout().refcount_order; }
  uint64_t IndexInSlice(uint64_t cluster) const { return cluster % slice_entries(); }

  ImageState& state_;
  Checkpointer& checkpointer_;
  bool punch_holes_ = true;
  uint64_t first_free_ = 0;  // no cluster before it is free
  RangeLocks growing_;
};

// Makes clusters for tables zeroes, and the file reach to their end. `fresh`: nothing was ever written there.
device::Task<Result<void>> ZeroClusters(ImageState& state, uint64_t offset, uint64_t clusters, bool fresh);

}  // namespace bulkhead::qcow2
