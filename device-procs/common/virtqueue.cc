// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/virtqueue.h"

#include <algorithm>
#include <atomic>
#include <bit>

namespace bulkhead::device {
namespace {

// Descriptor flags (§2.7.5).
constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kIndirect = 4;
// Ring flags (§2.7.6, §2.7.8).
constexpr uint16_t kNoInterrupt = 1;
constexpr uint16_t kNoNotify = 1;

constexpr uint64_t kDescriptorBytes = 16;
constexpr uint64_t kUsedElementBytes = 8;
constexpr uint64_t kFlagsOffset = 0;
constexpr uint64_t kIndexOffset = 2;
constexpr uint64_t kRingOffset = 4;

Error Broken(const char* what) { return Error{EPROTO, what}; }

uint64_t AvailableBytes(uint16_t size) { return kRingOffset + 2 * uint64_t{size} + 2; }
uint64_t UsedBytes(uint16_t size) { return kRingOffset + kUsedElementBytes * size + 2; }

// Calls visit(piece range start, bytes) for each part of [offset, offset + size) of the pieces.
template <typename Visit>
Result<void> ForRange(std::span<const Piece> pieces, uint64_t offset, uint64_t size_bytes, Visit visit) {
  for (const Piece& piece : pieces) {
    if (size_bytes == 0) break;
    if (offset >= piece.length_bytes) {
      offset -= piece.length_bytes;
      continue;
    }
    const uint64_t bytes = std::min<uint64_t>(size_bytes, piece.length_bytes - offset);
    if (auto result = visit(piece.address + offset, bytes); !result.ok()) return result;
    offset = 0;
    size_bytes -= bytes;
  }
  if (size_bytes != 0) return Error{EINVAL, "request is shorter than it must be"};
  return {};
}

}  // namespace

// As it lies in guest memory, little-endian (§2.7.5).
struct Virtqueue::Descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};

Virtqueue::Virtqueue(const GuestMemory& memory, const QueueLayout& layout, QueuePosition position,
                     std::optional<QueueLog> log)
    : memory_(&memory),
      layout_(layout),
      next_available_(position.next_available),
      next_used_(position.next_used),
      signalled_used_(position.next_used),
      log_(log) {}

Result<Virtqueue> Virtqueue::Create(const GuestMemory& memory, const QueueLayout& layout, QueuePosition position,
                                    std::optional<QueueLog> log) {
  if (!std::has_single_bit(layout.size) || layout.size > 32768) return Broken("queue size is not a power of two");
  // Alignments of §2.7.1.
  if (layout.descriptors.value % 16 != 0 || layout.available.value % 2 != 0 || layout.used.value % 4 != 0) {
    return Broken("queue is not aligned");
  }
  if (!memory.Contains(layout.descriptors, kDescriptorBytes * layout.size) ||
      !memory.Contains(layout.available, AvailableBytes(layout.size)) ||
      !memory.Contains(layout.used, UsedBytes(layout.size))) {
    return Broken("queue does not lie in guest memory");
  }
  if (log) log->Reset(position.next_available, position.next_used);
  return Virtqueue(memory, layout, position, log);
}

Result<Virtqueue> Virtqueue::TakeOver(const GuestMemory& memory, const QueueLayout& layout, QueueLog log) {
  auto queue = Create(memory, layout, {log.next_available(), log.next_used()});
  if (!queue.ok()) return queue;
  queue->log_ = log;
  if (auto recovered = queue->Recover(); !recovered.ok()) return recovered.error();
  return queue;
}

Result<Virtqueue> Virtqueue::TakeOverFromKernel(const GuestMemory& memory, const QueueLayout& layout, QueueLog log) {
  auto queue = Create(memory, layout);
  if (!queue.ok()) return queue;
  queue->log_ = log;
  const auto used = memory.LoadAcquire16(layout.used + kIndexOffset);
  if (!used.ok()) return used.error();
  queue->MoveTo({*used, *used});
  return queue;
}

Result<void> Virtqueue::Recover() {
  auto used = memory_->LoadAcquire16(layout_.used + kIndexOffset);
  if (!used.ok()) return used.error();
  // What the predecessor gave back and did not come to write down.
  if (static_cast<uint16_t>(*used - next_used_) > layout_.size) return Broken("used index is not the device's");
  for (; next_used_ != *used; ++next_used_) {
    const uint64_t slot = next_used_ % layout_.size;
    auto id = memory_->ReadObject<uint32_t>(layout_.used + kRingOffset + kUsedElementBytes * slot);
    if (!id.ok()) return id.error();
    if (*id < layout_.size) log_->GiveBack(static_cast<uint16_t>(*id));
  }
  log_->SetUsed(next_used_);
  const std::vector<QueueLog::Chain> out = log_->Out(layout_.size);
  if (out.size() != static_cast<uint16_t>(next_available_ - next_used_)) return Broken("used ring was changed");
  if (memory_->logs_writes()) NoteInherited(out);
  // The chains taken last are still in the available ring, and as good as not taken.
  size_t rest = out.size();
  while (rest != 0 && out[rest - 1].position == static_cast<uint16_t>(next_available_ - 1)) {
    --rest;
    UndoPop();
  }
  for (; rest != 0; --rest) owed_.push_back(out[rest - 1].head);
  signalled_used_ = next_used_;
  return {};
}

// What the predecessor wrote in its last instant it may not have come to mark: that was in the used ring, and in the
// buffers that it had.
void Virtqueue::NoteInherited(std::span<const QueueLog::Chain> out) const {
  memory_->NoteWritten(layout_.used, UsedBytes(layout_.size));
  for (const QueueLog::Chain& taken : out) {
    Chain chain;
    // One that cannot be walked any more is found when it is popped.
    (void)Walk(taken.head, chain);
    for (const Piece& piece : chain.writable) memory_->NoteWritten(piece.address, piece.length_bytes);
  }
}

void Virtqueue::UndoPop(uint16_t count) {
  next_available_ = static_cast<uint16_t>(next_available_ - count);
  if (log_) log_->UndoFrom(next_available_);
}

Result<uint16_t> Virtqueue::AvailableCount() const {
  auto index = memory_->LoadAcquire16(layout_.available + kIndexOffset);
  if (!index.ok()) return index;
  const auto count = static_cast<uint16_t>(*index - next_available_);
  if (count > layout_.size) return Broken("available index is further ahead than the queue is long");
  return count;
}

Result<bool> Virtqueue::PopOwed(Chain& chain) {
  chain.head = owed_.back();
  chain.readable.clear();
  chain.writable.clear();
  if (auto walked = Walk(chain.head, chain); !walked.ok()) return walked.error();
  owed_.pop_back();
  return true;
}

Result<bool> Virtqueue::Pop(Chain& chain) {
  if (!owed_.empty()) return PopOwed(chain);
  auto count = AvailableCount();
  if (!count.ok()) return count.error();
  if (*count == 0) return false;
  const uint64_t slot = next_available_ % layout_.size;
  auto head = memory_->ReadObject<uint16_t>(layout_.available + kRingOffset + 2 * slot);
  if (!head.ok()) return head.error();
  chain.head = *head;
  chain.readable.clear();
  chain.writable.clear();
  if (auto walked = Walk(*head, chain); !walked.ok()) return walked.error();
  if (log_) log_->Take(*head, next_available_);
  ++next_available_;
  return true;
}

Result<bool> Virtqueue::PopOrEnableKicks(Chain& chain) {
  auto popped = Pop(chain);
  if (!popped.ok() || *popped) return popped;
  auto more = EnableKicks();
  // A driver may make chains available, not take them away, so one look more is enough.
  if (!more.ok() || !*more) return more;
  return Pop(chain);
}

Result<void> Virtqueue::Walk(uint16_t head, Chain& chain) const {
  uint16_t index = head;
  // A chain may be no longer than its queue, its indirect table included (§2.7.5.3.1).
  for (uint32_t steps = 0; steps < layout_.size; ++steps) {
    if (index >= layout_.size) return Broken("descriptor index out of range");
    auto descriptor = memory_->ReadObject<Descriptor>(layout_.descriptors + kDescriptorBytes * index);
    if (!descriptor.ok()) return descriptor.error();
    if ((descriptor->flags & kIndirect) != 0) {
      // An indirect descriptor ends its chain (§2.7.5.3.1).
      if ((descriptor->flags & kNext) != 0) return Broken("indirect descriptor with a next one");
      return WalkIndirect(*descriptor, layout_.size - steps, chain);
    }
    if (auto added = AddPiece(*descriptor, chain); !added.ok()) return added;
    if ((descriptor->flags & kNext) == 0) return {};
    index = descriptor->next;
  }
  return Broken("descriptor chain has a loop");
}

Result<void> Virtqueue::WalkIndirect(const Descriptor& table, uint32_t steps_left, Chain& chain) const {
  if (table.length == 0 || table.length % kDescriptorBytes != 0) return Broken("indirect table of a ragged length");
  if (!memory_->Contains(Gpa{table.address}, table.length)) {
    return Broken("indirect table does not lie in guest memory");
  }
  const uint32_t entries = table.length / kDescriptorBytes;
  uint32_t index = 0;
  for (; steps_left != 0; --steps_left) {
    if (index >= entries) return Broken("indirect descriptor index out of range");
    auto descriptor = memory_->ReadObject<Descriptor>(Gpa{table.address} + kDescriptorBytes * index);
    if (!descriptor.ok()) return descriptor.error();
    if ((descriptor->flags & kIndirect) != 0) return Broken("indirect descriptor inside an indirect table");
    if (auto added = AddPiece(*descriptor, chain); !added.ok()) return added;
    if ((descriptor->flags & kNext) == 0) return {};
    index = descriptor->next;
  }
  return Broken("indirect chain longer than its queue");
}

Result<void> Virtqueue::AddPiece(const Descriptor& descriptor, Chain& chain) const {
  if (descriptor.address + descriptor.length < descriptor.address) return Broken("descriptor wraps around");
  const Piece piece{Gpa{descriptor.address}, descriptor.length};
  if ((descriptor.flags & kWrite) != 0) {
    chain.writable.push_back(piece);
    return {};
  }
  // §2.7.4.2: readable ones come first.
  if (!chain.writable.empty()) return Broken("readable descriptor after a writable one");
  chain.readable.push_back(piece);
  return {};
}

Result<void> Virtqueue::Push(uint16_t head, uint32_t written_bytes) {
  const UsedChain chain{head, written_bytes};
  return Push(std::span(&chain, 1));
}

Result<void> Virtqueue::Push(std::span<const UsedChain> chains) {
  struct UsedElement {
    uint32_t id;
    uint32_t length;
  };
  for (const UsedChain& chain : chains) {
    const uint64_t slot = next_used_++ % layout_.size;
    auto written = memory_->WriteObject(layout_.used + kRingOffset + kUsedElementBytes * slot,
                                        UsedElement{chain.head, chain.written_bytes});
    if (!written.ok()) return written;
  }
  auto published = memory_->StoreRelease16(layout_.used + kIndexOffset, next_used_);
  if (log_) {
    for (const UsedChain& chain : chains) log_->GiveBack(chain.head);
    log_->SetUsed(next_used_);
  }
  return published;
}

bool Virtqueue::HasChains() const {
  if (!owed_.empty()) return true;
  const auto index = memory_->LoadAcquire16(layout_.available + kIndexOffset);
  return !index.ok() || *index != next_available_;
}

Result<bool> Virtqueue::NeedsInterrupt() {
  const uint16_t old = std::exchange(signalled_used_, next_used_);
  if (old == next_used_) return false;
  // The used index must be visible before the driver's wish is read: it may change it meanwhile.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!layout_.event_index) {
    auto flags = memory_->LoadAcquire16(layout_.available + kFlagsOffset);
    if (!flags.ok()) return flags.error();
    return (*flags & kNoInterrupt) == 0;
  }
  auto event = memory_->LoadAcquire16(layout_.available + kRingOffset + 2 * uint64_t{layout_.size});
  if (!event.ok()) return event.error();
  // Did the used index pass the event (§2.7.10)?
  return static_cast<uint16_t>(next_used_ - *event - 1) < static_cast<uint16_t>(next_used_ - old);
}

Result<bool> Virtqueue::EnableKicks() {
  kicks_enabled_ = true;
  const Gpa event = layout_.used + kRingOffset + kUsedElementBytes * layout_.size;
  auto stored = layout_.event_index ? memory_->StoreRelease16(event, next_available_)
                                    : memory_->StoreRelease16(layout_.used + kFlagsOffset, 0);
  if (!stored.ok()) return stored.error();
  // What the driver made available before it saw this came without a kick.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  auto count = AvailableCount();
  if (!count.ok()) return count.error();
  return *count != 0 || !owed_.empty();
}

Result<void> Virtqueue::DisableKicks() {
  if (!kicks_enabled_) return {};
  kicks_enabled_ = false;
  // With an event index nothing needs saying: the event stays behind.
  if (layout_.event_index) return {};
  return memory_->StoreRelease16(layout_.used + kFlagsOffset, kNoNotify);
}

Result<QueueAddresses> Virtqueue::Addresses() const {
  std::vector<iovec> pieces;
  for (const auto& [at, bytes] :
       {std::pair{layout_.descriptors, kDescriptorBytes * layout_.size},
        std::pair{layout_.available, AvailableBytes(layout_.size)}, std::pair{layout_.used, UsedBytes(layout_.size)}}) {
    if (auto found = memory_->Translate(at, bytes, pieces); !found.ok()) return found.error();
  }
  if (pieces.size() != 3) return Broken("queue does not lie in one piece");
  return QueueAddresses{pieces[0].iov_base, pieces[1].iov_base, pieces[2].iov_base};
}

void Virtqueue::MoveTo(QueuePosition position) {
  next_available_ = position.next_available;
  next_used_ = signalled_used_ = position.next_used;
  if (log_) log_->Reset(next_available_, next_used_);
}

uint64_t TotalBytes(std::span<const Piece> pieces) {
  uint64_t total = 0;
  for (const Piece& piece : pieces) total += piece.length_bytes;
  return total;
}

Result<void> ReadPieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                        std::span<std::byte> to) {
  return ForRange(pieces, offset, to.size(), [&](Gpa address, uint64_t bytes) {
    auto result = memory.Read(address, to.first(bytes));
    to = to.subspan(bytes);
    return result;
  });
}

Result<void> WritePieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                         std::span<const std::byte> from) {
  return ForRange(pieces, offset, from.size(), [&](Gpa address, uint64_t bytes) {
    auto result = memory.Write(address, from.first(bytes));
    from = from.subspan(bytes);
    return result;
  });
}

void NoteWrittenPieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset, uint64_t size_bytes) {
  if (!memory.logs_writes()) return;
  (void)ForRange(pieces, offset, size_bytes, [&](Gpa address, uint64_t bytes) -> Result<void> {
    memory.NoteWritten(address, bytes);
    return {};
  });
}

Result<void> TranslatePieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                             uint64_t size_bytes, std::vector<iovec>& vectors) {
  return ForRange(pieces, offset, size_bytes,
                  [&](Gpa address, uint64_t bytes) { return memory.Translate(address, bytes, vectors); });
}

}  // namespace bulkhead::device
