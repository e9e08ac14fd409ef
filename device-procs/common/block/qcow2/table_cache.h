// SPDX-License-Identifier: Apache-2.0
// The second-level tables and refcount blocks of an image, in pieces ("slices"), as many as fit into a fixed amount of
// memory. A slice that was changed stays until a checkpoint has written it. Image's thread. What is read is the file's
// author's: hostile; here nobody looks into it.
//
// A pointer to a slice is good until its user next suspends: every way to another table may put it out.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/buffer.h"
#include "device-procs/common/block/qcow2/table_store.h"

namespace bulkhead::qcow2 {

struct Slice {
  uint64_t offset = 0;  // in the file
  TableKind kind = TableKind::kL2;
  bool loading = false;
  bool dirty = false;    // differs from what the last checkpoint took
  bool writing = false;  // a checkpoint is writing what it took
  std::span<std::byte> bytes;

  uint32_t slot = 0;  // of the store, whose memory its bytes are then
  Buffer own;         // else
};

class TableCache {
 public:
  // Keeps at least a few slices, whatever the capacity. With a store, which outlives it, they are kept there, as many
  // as SlicesOf says.
  TableCache(device::BlockChannel& file, uint64_t slice_bytes, uint64_t capacity_bytes, TableStore* store = nullptr);
  ~TableCache();

  static size_t SlicesOf(uint64_t slice_bytes, uint64_t capacity_bytes);

  uint64_t slice_bytes() const { return slice_bytes_; }
  // The slice at this offset, if it is here.
  Slice* Find(uint64_t offset);
  // Reads it. When this returns it is here unless another was quicker to put it out: look again. An error also where
  // all that is here could not be written, so that there is no room.
  device::Task<Result<void>> Load(uint64_t offset, TableKind kind);

  // So much is changed that a checkpoint has to come before more is.
  bool TooDirty() const { return dirty_ >= max_dirty_; }
  void MarkDirty(Slice& slice);
  // Before anything is read: a slice of the store that a predecessor changed, one for each offset at most.
  void Adopt(const TableStore::Slot& slot);
  // Forgets what it knows of a range of the file that becomes something else.
  void Drop(uint64_t offset, uint64_t size_bytes);

  bool dirty() const { return dirty_ != 0; }
  // All that are dirty, in the order of the file; they count as being written until Written.
  std::vector<Slice*> TakeDirty();
  void Written(const std::vector<Slice*>& slices, bool failed);

 private:
  using List = std::list<std::unique_ptr<Slice>>;

  Slice& Add(uint32_t slot);
  // A slice to read into, or null where all are in use just now.
  Slice* Free();
  // Some will be free when what is under way has ended.
  bool Busy() const;

  device::BlockChannel& file_;
  const uint64_t slice_bytes_;
  const size_t max_slices_;
  const size_t max_dirty_;
  TableStore* const store_;
  std::vector<bool> adopted_;  // slots
  uint32_t next_slot_ = 0;     // no slot from here on is in use but adopted ones
  size_t dirty_ = 0;
  List slices_;  // the most recently used first
  std::unordered_map<uint64_t, List::iterator> by_offset_;
  device::WaitList changed_;  // a load ended, a slice became clean
};

}  // namespace bulkhead::qcow2
