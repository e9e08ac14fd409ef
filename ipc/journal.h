// SPDX-License-Identifier: Apache-2.0
// What a device process leaves behind for the one that takes its place when it dies, in memory that outlives it: the
// device's saved state, how far it came in the exit rings, which descriptor chains it has in hand, and of a disk with
// an image format the tables that its file does not have yet. It is kept up to date all along, since a process that is
// killed has no time to write a will. The broker makes the memory and gives it to one process after the other; it never
// looks inside.
//
// Nothing here survives the host, and no two processes use it at once, so no memory barrier is needed: only the order
// of this program's own stores counts, and each step is one store. To a successor all of it is hostile: its predecessor
// may have died because somebody owned it.
//
// Device thread, but for a queue's log: whoever serves the queue.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ipc/fd.h"
#include "ipc/ring.h"

namespace bulkhead {

inline constexpr uint16_t kJournalQueueEntries = 256;    // the most that a queue can have
inline constexpr size_t kJournalStateBytes = 128 << 10;  // a serial port's unsent output is most of it
// What the tables of an image get; what is not used of it costs no memory.
inline constexpr size_t kJournalTablesBytes = (4 << 20) + (256 << 10);

// How far a process came in its exit channel, and its last answer, which its peer may not have seen.
struct ExitPosition {
  uint32_t requests_taken = 0;
  uint32_t replies_given = 0;
};

// Which chains of one virtqueue are out. The queue's own order of work is in the comments of QueueLog.
struct QueueLogMemory {
  struct Entry {
    std::atomic<uint16_t> position;  // of the available ring, where the chain was found
    std::atomic<uint16_t> out;
  };
  std::atomic<uint16_t> next_available;
  std::atomic<uint16_t> next_used;
  std::array<uint32_t, 15> reserved;
  std::array<Entry, kJournalQueueEntries> entries;  // by head
};
static_assert(sizeof(QueueLogMemory) % 64 == 0 && std::atomic<uint16_t>::is_always_lock_free);

class QueueLog {
 public:
  explicit QueueLog(QueueLogMemory* memory) : memory_(memory) {}

  // No chain is out, and the queue stands there.
  void Reset(uint16_t next_available, uint16_t next_used);

  // A chain found at `position` of the available ring is taken, which counts once the position after it is stored.
  void Take(uint16_t head, uint16_t position) {
    if (head >= kJournalQueueEntries) return;
    QueueLogMemory::Entry& entry = memory_->entries[head];
    Store(entry.position, position);
    Store(entry.out, 1);
    Store(memory_->next_available, static_cast<uint16_t>(position + 1));
  }
  // The chains from `position` on are available again.
  void UndoFrom(uint16_t position) { Store(memory_->next_available, position); }
  // A chain has been given back: its element is in the used ring, and the used index published.
  void GiveBack(uint16_t head) {
    if (head < kJournalQueueEntries) Store(memory_->entries[head].out, 0);
  }
  // All that the used index speaks of has been given back.
  void SetUsed(uint16_t next_used) { Store(memory_->next_used, next_used); }

  // For a successor.
  uint16_t next_available() const { return memory_->next_available.load(std::memory_order_relaxed); }
  uint16_t next_used() const { return memory_->next_used.load(std::memory_order_relaxed); }
  struct Chain {
    uint16_t head = 0;
    uint16_t position = 0;
  };
  // Those that are out, in the order in which they were taken.
  std::vector<Chain> Out(uint16_t queue_size) const;

 private:
  // In this order as far as the compiler goes; the processor's is what a successor sees.
  static void Store(std::atomic<uint16_t>& to, uint16_t value) {
    to.store(value, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }

  QueueLogMemory* memory_;
};

class Journal {
 public:
  enum class Tables : uint8_t { kNone, kKept };

  // For the broker: as many bytes as a process with so many virtqueues needs.
  static Result<OwnFd> Make(const std::string& name, size_t queues, Tables tables = Tables::kNone);
  // Maps what Make made. Before lock-down.
  static Result<Journal> Map(int file, size_t queues);

  // From now on a successor starts there: `reply` is the last answer given, of `position`.
  void Commit(const ExitPosition& position, const Frame& reply);
  // The same with another state. What does not fit leaves the process without one: nobody can take its place.
  void Commit(const ExitPosition& position, const Frame& reply, std::span<const std::byte> state);
  QueueLog Queue(size_t index) const;
  size_t queue_count() const { return queue_count_; }
  // Empty, or kJournalTablesBytes: whoever keeps tables there knows what they are. Zeroes at first.
  std::span<std::byte> tables() const { return tables_; }

  // What a predecessor left; ENODATA where it did not come to leave anything.
  struct Legacy {
    ExitPosition position;
    Frame reply;
    std::vector<std::byte> state;
    int64_t saved_at_ns = 0;  // CLOCK_MONOTONIC
  };
  Result<Legacy> Read() const;

 private:
  struct Record;
  struct Memory;
  Journal(Memory* memory, QueueLogMemory* queues, size_t queue_count, std::span<std::byte> tables)
      : memory_(memory), queues_(queues), queue_count_(queue_count), tables_(tables) {}
  static uint64_t Bytes(size_t queues);
  Record& Next();
  void Publish(Record& record, const ExitPosition& position, const Frame& reply);

  Memory* memory_;
  QueueLogMemory* queues_;
  size_t queue_count_;
  std::span<std::byte> tables_;
};

}  // namespace bulkhead
