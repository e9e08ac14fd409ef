// SPDX-License-Identifier: Apache-2.0
// The device side of a split virtqueue (virtio 1.2 §2.7), with indirect descriptors and event index. One thread at a
// time: the device thread, or the queue's own worker. Everything in guest memory is hostile and may change at any
// moment: an index, address or length is copied once, checked, then used. An error means that the driver broke the
// queue: nothing more is taken from it, and the device asks for a reset (§2.1.1).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ipc/guest_memory.h"
#include "ipc/journal.h"
#include "ipc/result.h"

namespace bulkhead::device {

// Where a queue lies; what the driver wrote into the common configuration structure.
struct QueueLayout {
  uint16_t size = 0;  // entries, a power of two
  Gpa descriptors{};  // 16 bytes each
  Gpa available{};    // driver area
  Gpa used{};         // device area
  bool event_index = false;
};

// Where the device stands in it: what is saved beside the layout.
struct QueuePosition {
  uint16_t next_available = 0;
  uint16_t next_used = 0;
};

// Its three parts as they lie in this process.
struct QueueAddresses {
  void* descriptors = nullptr;
  void* available = nullptr;
  void* used = nullptr;
};

// A chain on its way back to the driver.
struct UsedChain {
  uint16_t head = 0;
  uint32_t written_bytes = 0;
};

// A piece of guest memory that a descriptor names; not yet known to be RAM.
struct Piece {
  Gpa address;
  uint32_t length_bytes = 0;
};

// One request: what the device may read, then what it may write (§2.7.4.2).
struct Chain {
  uint16_t head = 0;
  std::vector<Piece> readable;
  std::vector<Piece> writable;
};

class Virtqueue {
 public:
  // EPROTO where size, alignment or place are not what §2.7 asks for.
  // With a log, what is out is written down there.
  static Result<Virtqueue> Create(const GuestMemory& memory, const QueueLayout& layout, QueuePosition position = {},
                                  std::optional<QueueLog> log = {});
  // Goes on for a process that died, with its log, which is hostile: what that had in hand is popped again, in the
  // order of the first time. EPROTO too where log and used ring contradict each other.
  static Result<Virtqueue> TakeOver(const GuestMemory& memory, const QueueLayout& layout, QueueLog log);
  // The same where the kernel served the queue for the one that died (vhost), and gave back all that it took before it
  // ended.
  static Result<Virtqueue> TakeOverFromKernel(const GuestMemory& memory, const QueueLayout& layout, QueueLog log);

  // Takes the next available chain into `chain`, whose buffers are reused; false if there is none.
  Result<bool> Pop(Chain& chain);
  // The same, but where there is none a kick is asked for (EnableKicks): after false one will come.
  Result<bool> PopOrEnableKicks(Chain& chain);
  // Takes back the last `count` Pops, which must be all the chains that are out: the next Pop finds the first of them
  // again, walked anew.
  void UndoPop(uint16_t count = 1);
  // Gives a chain back; `written_bytes` counts from the start of its writable part. Chains may return in any order.
  Result<void> Push(uint16_t head, uint32_t written_bytes);
  // The same for chains that belong together: the driver sees all of them or none.
  Result<void> Push(std::span<const UsedChain> chains);
  // Whether the driver wants an interrupt for what was pushed since the last call (§2.7.7.1, §2.7.10).
  Result<bool> NeedsInterrupt();
  // Whether Pop is due: also where it would find the queue broken.
  bool HasChains() const;
  // Asks the driver for a kick at the next chain; true if one is there already, and Pop is due.
  Result<bool> EnableKicks();
  // Tells the driver that kicks are not needed now; it may send them all the same.
  Result<void> DisableKicks();

  const QueueLayout& layout() const { return layout_; }
  QueuePosition position() const { return {next_available_, next_used_}; }

  // For a queue that the kernel serves in this one's place (vhost): where it lies, EPROTO where a part of it is not in
  // one piece; and, when that is over, how far it came.
  Result<QueueAddresses> Addresses() const;
  void MoveTo(QueuePosition position);

 private:
  struct Descriptor;
  Virtqueue(const GuestMemory& memory, const QueueLayout& layout, QueuePosition position, std::optional<QueueLog> log);
  Result<uint16_t> AvailableCount() const;
  Result<bool> PopOwed(Chain& chain);
  Result<void> Recover();
  void NoteInherited(std::span<const QueueLog::Chain> out) const;
  Result<void> Walk(uint16_t head, Chain& chain) const;
  Result<void> WalkIndirect(const Descriptor& table, uint32_t steps_left, Chain& chain) const;
  Result<void> AddPiece(const Descriptor& descriptor, Chain& chain) const;

  const GuestMemory* memory_;
  QueueLayout layout_;
  uint16_t next_available_;
  uint16_t next_used_;
  uint16_t signalled_used_;  // next_used_ at the last interrupt decision
  bool kicks_enabled_ = true;
  std::optional<QueueLog> log_;
  // Heads that a predecessor took and did not give back, the last one to be popped first.
  std::vector<uint16_t> owed_;
};

// The total length of a chain's pieces: at most 2^15 of them, so it cannot overflow.
uint64_t TotalBytes(std::span<const Piece> pieces);
// Copies between a buffer and the bytes [offset, offset + buffer size) of the pieces laid end to end; EINVAL if they
// are shorter, EFAULT if they are not RAM.
Result<void> ReadPieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                        std::span<std::byte> to);
Result<void> WritePieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                         std::span<const std::byte> from);
// To be called after the kernel or anybody else wrote the range as I/O vectors.
void NoteWrittenPieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset, uint64_t size_bytes);
// The same range as I/O vectors of this process.
Result<void> TranslatePieces(const GuestMemory& memory, std::span<const Piece> pieces, uint64_t offset,
                             uint64_t size_bytes, std::vector<iovec>& vectors);

}  // namespace bulkhead::device
