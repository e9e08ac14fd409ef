// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/table_store.h"

#include <array>
#include <string>
#include <unordered_set>

#include "device-procs/common/block/qcow2/format.h"

namespace bulkhead::qcow2 {
namespace {

constexpr uint64_t kLayout = 1;
constexpr size_t kMaxSlots = TableStore::kSlicesBytes / kSectorBytes;  // no slice is smaller

// Of a slot's mark, in the low bits of its offset.
constexpr uint64_t kChanged = 1;
constexpr uint64_t kIsRefcounts = 2;
// Of a log entry's place.
constexpr uint64_t kInRefcounts = uint64_t{1} << 63;

Error Wrong(const std::string& what) { return {EPROTO, "the process before left tables that cannot be: " + what}; }

}  // namespace

struct TableStore::Memory {
  struct Entry {
    std::atomic<uint64_t> place;  // index, and in which table
    std::atomic<uint64_t> entry;
  };

  std::atomic<uint64_t> form;  // kLayout and the size of a slice; 0: nobody was here
  std::atomic<uint64_t> log;   // first and last position, so that both change at once
  std::array<std::atomic<uint64_t>, kMaxSlots> slots;
  alignas(4096) std::array<Entry, kLogEntries> entries;
  alignas(4096) std::array<std::byte, kSlicesBytes> slices;
};

TableStore::TableStore(std::span<std::byte> memory, uint32_t log_entries)
    : memory_(reinterpret_cast<Memory*>(memory.data())), log_entries_(log_entries) {
  static_assert(sizeof(Memory) <= kJournalTablesBytes && std::atomic<uint64_t>::is_always_lock_free);
  if (memory.size() != kJournalTablesBytes) throw FatalError("a journal has no room for tables");
}

// In this order as far as the compiler goes; the processor's is what a successor sees.
void TableStore::Publish(std::atomic<uint64_t>& to, uint64_t value) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  to.store(value, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

Result<TableStore::Legacy> TableStore::Open(uint64_t slice_bytes, size_t slots) {
  if (slots > kSlicesBytes / slice_bytes) return Error{EINVAL, "the image has more tables than a journal has room for"};
  slice_bytes_ = slice_bytes;
  const uint64_t form = kLayout << 32 | slice_bytes;
  const uint64_t found = memory_->form.load(std::memory_order_relaxed);
  if (found == 0) {
    Publish(memory_->form, form);
    return Legacy();
  }
  if (found != form) return Wrong("they are of another form");
  return Read(slots);
}

Result<TableStore::Legacy> TableStore::Read(size_t slots) {
  Legacy legacy;
  const uint64_t log = memory_->log.load(std::memory_order_relaxed);
  first_ = static_cast<uint32_t>(log);
  last_ = static_cast<uint32_t>(log >> 32);
  if (last_ - first_ > log_entries_) return Wrong("their log is longer than it can be");
  for (uint32_t position = first_; position != last_; ++position) {
    const Memory::Entry& entry = memory_->entries[position % log_entries_];
    const uint64_t place = entry.place.load(std::memory_order_relaxed);
    legacy.changes.push_back({.table = (place & kInRefcounts) != 0 ? Table::kRefcounts : Table::kL1,
                              .index = place & ~kInRefcounts,
                              .entry = entry.entry.load(std::memory_order_relaxed)});
  }
  std::unordered_set<uint64_t> offsets;
  for (uint32_t number = 0; number < slots; ++number) {
    const uint64_t mark = memory_->slots[number].load(std::memory_order_relaxed);
    if (mark == 0) continue;
    const uint64_t offset = mark & ~(kChanged | kIsRefcounts);
    if ((mark & kChanged) == 0 || offset % slice_bytes_ != 0 || !offsets.insert(offset).second) {
      return Wrong("a slice at byte " + std::to_string(offset));
    }
    legacy.slots.push_back({.number = number,
                            .offset = offset,
                            .kind = (mark & kIsRefcounts) != 0 ? TableKind::kRefcount : TableKind::kL2});
  }
  return legacy;
}

std::span<std::byte> TableStore::Bytes(uint32_t slot) const {
  return std::span(memory_->slices).subspan(slot * slice_bytes_, slice_bytes_);
}

void TableStore::MarkChanged(const Slot& slot) {
  const uint64_t kind = slot.kind == TableKind::kRefcount ? kIsRefcounts : 0;
  Publish(memory_->slots[slot.number], slot.offset | kind | kChanged);
}

void TableStore::MarkSame(uint32_t slot) { Publish(memory_->slots[slot], 0); }

void TableStore::Note(const Change& change) {
  Memory::Entry& entry = memory_->entries[last_ % log_entries_];
  entry.place.store(change.index | (change.table == Table::kRefcounts ? kInRefcounts : 0), std::memory_order_relaxed);
  entry.entry.store(change.entry, std::memory_order_relaxed);
  ++last_;
  Publish(memory_->log, uint64_t{last_} << 32 | first_);
}

void TableStore::Forget(uint32_t up_to) {
  if (up_to == first_) return;
  first_ = up_to;
  // From its start again, so that little of it is ever used.
  if (first_ == last_) first_ = last_ = 0;
  Publish(memory_->log, uint64_t{last_} << 32 | first_);
}

}  // namespace bulkhead::qcow2
