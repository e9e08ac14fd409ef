// SPDX-License-Identifier: Apache-2.0
// What an open qcow2 image knows, shared by those who work on it: its header, the tables that are kept whole, the cache
// of those that are not, and where all tables lie. Image's thread. The values were read from the file: hostile beyond
// what each comment says of them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/header.h"
#include "device-procs/common/block/qcow2/table_cache.h"
#include "device-procs/common/block/qcow2/table_store.h"
#include "device-procs/common/block/work_limit.h"

namespace bulkhead::qcow2 {

// Clusters of the file that hold tables: no data may be written there, whatever an entry says.
class TableMap {
 public:
  // False if one of them is a table already.
  bool Add(uint64_t first_cluster, uint64_t count);
  // The same in bulk, before the first lookup; returns how many were named twice.
  size_t AddAll(std::vector<uint64_t> clusters);
  void Remove(uint64_t first_cluster, uint64_t count);
  bool Overlaps(uint64_t first_cluster, uint64_t count) const;

 private:
  std::vector<uint64_t> clusters_;  // sorted
};

// A table that is kept whole, and which of its sectors the file does not have yet.
struct WholeTable {
  static constexpr uint64_t kEntriesPerSector = kSectorBytes / sizeof(uint64_t);

  uint64_t offset = 0;  // in the file
  std::vector<uint64_t> entries;
  std::set<uint64_t> dirty_sectors;
  // Where changes are noted for a successor; null: nowhere.
  TableStore* store = nullptr;
  TableStore::Table name = TableStore::Table::kL1;

  // While the store's log has room.
  void Set(uint64_t index, uint64_t entry) {
    SetUnlogged(index, entry);
    if (store != nullptr) store->Note({name, index, entry});
  }
  // What is in the log already.
  void SetUnlogged(uint64_t index, uint64_t entry) {
    entries[index] = entry;
    dirty_sectors.insert(index / kEntriesPerSector);
  }
  // One sector as the file has it; zeroes after the last entry.
  void EncodeSector(uint64_t sector, std::byte* out) const;
};

struct ImageState {
  ImageState(device::BlockChannel& file, const device::BlockGeometry& file_geometry, bool block_device,
             std::function<void(const std::string&)> log);

  device::BlockChannel& file;
  const bool block_device;
  const std::function<void(const std::string&)> log;
  bool read_only = false;

  Header header;
  Buffer header_sector{kSectorBytes};  // as the file has it
  WholeTable l1;                       // aligned offsets with clean reserved bits
  WholeTable refcounts;                // the same
  TableMap tables;
  std::optional<TableCache> cache;
  TableStore* store = nullptr;  // for a successor; null: there is none
  // Beyond this nothing was ever written: a file reads as zeroes there. Not so a block device.
  uint64_t file_end = 0;
  // The tables contradict each other: nothing is written any more.
  bool corrupt = false;
  device::WorkLimit work;  // of jobs on the whole image

  const Layout& layout() const { return header.layout; }
  uint64_t cluster_bytes() const { return header.layout.cluster_bytes(); }
  bool IsFresh(uint64_t offset) const { return !block_device && offset >= file_end; }
  // No table that is kept whole may be changed until a checkpoint has run.
  bool LogFull() const { return store != nullptr && store->LogFull(); }
  void UseUpTo(uint64_t offset) { file_end = std::max(file_end, offset); }

  // From now on every request that would look at tables fails; says why once, and says it in the file if it may.
  Error Corrupt(const std::string& what);
  // Waits until the file says so.
  device::Task<Result<void>> Marked();

 private:
  device::Spawned WriteCorruptBit();

  bool marking_ = false;
  device::WaitList marked_;
};

// Writes what changed in the header, and makes it durable.
device::Task<Result<void>> WriteHeaderSector(ImageState& state);

}  // namespace bulkhead::qcow2
