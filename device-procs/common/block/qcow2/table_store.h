// SPDX-License-Identifier: Apache-2.0
// What of an image's tables is changed and not yet in its file, in memory that outlives the process (ipc/journal.h):
// the slices of the cache with a mark on those that differ from the file, and a log of the entries of the tables that
// are kept whole. A successor opens the file and lays this over it, so it does not matter how much of a checkpoint got
// there. What cannot be told from it, clusters that are to be given back or were just taken, only leaks.
//
// As in the journal the order of this program's own stores is all that counts, and each step is one store: a mark is
// set after the change and before anything that builds on it. To a successor all of it is hostile; what is in a slice
// is as hostile as the file, and looked at by those who use it.
//
// Image's thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ipc/journal.h"
#include "ipc/result.h"

namespace bulkhead::qcow2 {

enum class TableKind : uint8_t { kL2, kRefcount };

class TableStore {
 public:
  static constexpr uint64_t kSlicesBytes = uint64_t{4} << 20;  // of all slices together
  static constexpr uint32_t kLogEntries = 8192;

  // A slice that differs from the file.
  struct Slot {
    uint32_t number = 0;
    uint64_t offset = 0;  // in the file
    TableKind kind = TableKind::kL2;
  };
  enum class Table : uint8_t { kL1, kRefcounts };
  // An entry of a table that is kept whole.
  struct Change {
    Table table = Table::kL1;
    uint64_t index = 0;
    uint64_t entry = 0;
  };
  // What a predecessor left. Offsets are multiples of a slice's size, and no two slots have the same; whether tables
  // are there is not known, nor whether a change is one that can be.
  struct Legacy {
    std::vector<Slot> slots;
    std::vector<Change> changes;  // in their order
  };

  // `memory`: kJournalTablesBytes of a journal, which outlive this. The log holds a power of two of entries.
  explicit TableStore(std::span<std::byte> memory, uint32_t log_entries = kLogEntries);

  // Once, before anything else. Nothing was left where there was no predecessor.
  Result<Legacy> Open(uint64_t slice_bytes, size_t slots);

  std::span<std::byte> Bytes(uint32_t slot) const;
  void MarkChanged(const Slot& slot);
  void MarkSame(uint32_t slot);

  // While it is full nothing may be noted.
  bool LogFull() const { return last_ - first_ >= log_entries_; }
  void Note(const Change& change);
  // How far the log is; and that all up to there is in the file.
  uint32_t noted() const { return last_; }
  void Forget(uint32_t up_to);

 private:
  struct Memory;

  Result<Legacy> Read(size_t slots);
  void Publish(std::atomic<uint64_t>& to, uint64_t value);

  Memory* const memory_;
  const uint32_t log_entries_;
  uint64_t slice_bytes_ = 0;
  // Of the log, which never ends: positions in it are taken modulo its size.
  uint32_t first_ = 0;
  uint32_t last_ = 0;
};

}  // namespace bulkhead::qcow2
