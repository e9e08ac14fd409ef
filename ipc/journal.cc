// SPDX-License-Identifier: Apache-2.0
#include "ipc/journal.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace bulkhead {
namespace {

constexpr uint32_t kSlots = 2;

uint64_t RoundedUp(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

struct Journal::Record {
  ExitPosition position;
  uint32_t state_slot;
  uint32_t state_bytes;  // 0: none yet, or one that did not fit
  int64_t saved_at_ns;   // the state
  Frame reply;
};

// Two of each, so that one is whole at any time. The record of an odd count is the second.
struct Journal::Memory {
  std::atomic<uint32_t> commits;
  std::array<Record, kSlots> records;
  alignas(4096) std::array<std::array<std::byte, kJournalStateBytes>, kSlots> states;
};

void QueueLog::Reset(uint16_t next_available, uint16_t next_used) {
  for (QueueLogMemory::Entry& entry : memory_->entries) entry.out.store(0, std::memory_order_relaxed);
  Store(memory_->next_available, next_available);
  Store(memory_->next_used, next_used);
}

std::vector<QueueLog::Chain> QueueLog::Out(uint16_t queue_size) const {
  const uint16_t next = next_available();
  const uint16_t count = std::min(queue_size, kJournalQueueEntries);
  const auto age = [next](uint16_t position) { return static_cast<uint16_t>(next - 1 - position); };
  std::vector<Chain> out;
  for (uint16_t head = 0; head < count; ++head) {
    const QueueLogMemory::Entry& entry = memory_->entries[head];
    const uint16_t position = entry.position.load(std::memory_order_relaxed);
    // One that was taken back, or whose taking was not finished, lies ahead.
    if (entry.out.load(std::memory_order_relaxed) == 1 && age(position) < 0x8000) out.push_back({head, position});
  }
  std::ranges::sort(out, std::greater(), [&](const Chain& chain) { return age(chain.position); });
  return out;
}

uint64_t Journal::Bytes(size_t queues) {
  return RoundedUp(sizeof(Memory)) + RoundedUp(queues * sizeof(QueueLogMemory));
}

Result<OwnFd> Journal::Make(const std::string& name, size_t queues, Tables tables) {
  return MakeSealedMemory(name, Bytes(queues) + (tables == Tables::kKept ? kJournalTablesBytes : 0));
}

Result<Journal> Journal::Map(int file, size_t queues) {
  // A broker that started before an upgrade may know of no tables.
  struct stat status;
  if (::fstat(file, &status) != 0) return ErrnoError(errno, "look at a journal");
  const uint64_t bytes = Bytes(queues);
  const auto there = static_cast<uint64_t>(status.st_size);
  if (there != bytes && there != bytes + kJournalTablesBytes) return Error{EINVAL, "a journal is of the wrong size"};
  void* at = ::mmap(nullptr, there, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (at == MAP_FAILED) return ErrnoError(errno, "map a journal");
  auto* start = static_cast<std::byte*>(at);
  auto* logs = reinterpret_cast<QueueLogMemory*>(start + RoundedUp(sizeof(Memory)));
  return Journal(static_cast<Memory*>(at), logs, queues, {start + bytes, there - bytes});
}

Journal::Record& Journal::Next() {
  const uint32_t commits = memory_->commits.load(std::memory_order_relaxed);
  Record& next = memory_->records[(commits + 1) % kSlots];
  const Record& last = memory_->records[commits % kSlots];
  next.state_slot = last.state_slot;
  next.state_bytes = last.state_bytes;
  next.saved_at_ns = last.saved_at_ns;
  return next;
}

void Journal::Publish(Record& record, const ExitPosition& position, const Frame& reply) {
  record.position = position;
  record.reply.length_bytes = reply.length_bytes;
  std::memcpy(record.reply.bytes.data(), reply.bytes.data(), reply.length_bytes);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  memory_->commits.fetch_add(1, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

void Journal::Commit(const ExitPosition& position, const Frame& reply) { Publish(Next(), position, reply); }

void Journal::Commit(const ExitPosition& position, const Frame& reply, std::span<const std::byte> state) {
  Record& next = Next();
  next.state_slot = (next.state_slot + 1) % kSlots;
  next.state_bytes = state.size() <= kJournalStateBytes ? static_cast<uint32_t>(state.size()) : 0;
  next.saved_at_ns = MonotonicNow();
  std::memcpy(memory_->states[next.state_slot].data(), state.data(), next.state_bytes);
  Publish(next, position, reply);
}

QueueLog Journal::Queue(size_t index) const { return QueueLog(&queues_[index]); }

Result<Journal::Legacy> Journal::Read() const {
  const Record& record = memory_->records[memory_->commits.load() % kSlots];
  const uint32_t bytes = record.state_bytes, reply_bytes = record.reply.length_bytes;
  if (bytes == 0) return Error{ENODATA, "the process before left no state"};
  if (bytes > kJournalStateBytes || reply_bytes > kFrameCapacity) {
    return Error{EPROTO, "the process before left a state that cannot be"};
  }
  Legacy legacy{.position = record.position, .reply = {}, .state = {}, .saved_at_ns = record.saved_at_ns};
  legacy.reply.length_bytes = reply_bytes;
  std::memcpy(legacy.reply.bytes.data(), record.reply.bytes.data(), reply_bytes);
  const std::byte* const state = memory_->states[record.state_slot % kSlots].data();
  legacy.state.assign(state, state + bytes);
  return legacy;
}

}  // namespace bulkhead
