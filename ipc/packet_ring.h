// SPDX-License-Identifier: Apache-2.0
// Ethernet frames between two processes that share memory and do not trust each other: a net process and the one that
// is its outside. One ring of bytes for each direction, with one producer and one consumer; a frame lies in it behind
// its length. Each end keeps its own index privately and takes everything that it reads from shared memory for hostile:
// an index that cannot be, or a length that no frame has or that reaches beyond what was published, is a broken
// protocol (EPROTO), and the peer is then no longer spoken to. Bytes leave the ring by being copied, once.
//
// Waiting: a consumer that finds nothing says that it sleeps, a producer that finds no room that it waits; the other
// end then signals the eventfd of whoever does. Each object belongs to one thread at a time.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ipc/fd.h"

namespace bulkhead {

inline constexpr uint32_t kPacketRingBytes = 512 << 10;
// The largest IP packet behind an Ethernet header with an 802.1Q tag.
inline constexpr size_t kMaxRingFrameBytes = 65535 + 18;

// The shared layout. Indices count bytes, run freely and wrap at 2^32.
struct PacketRingMemory {
  alignas(64) std::atomic<uint32_t> head;   // written by the producer
  std::atomic<uint32_t> producer_waiting;   // for room
  alignas(64) std::atomic<uint32_t> tail;   // written by the consumer
  std::atomic<uint32_t> consumer_sleeping;  // wants to be woken
  alignas(4096) std::array<std::byte, kPacketRingBytes> bytes;
};

class PacketProducer {
 public:
  // Goes on where the ring stands: another process may have had this end before. An index that the peer has changed
  // meanwhile is found out as any other.
  explicit PacketProducer(PacketRingMemory* memory) : memory_(memory), head_(memory->head.load()) {}

  // Publishes a frame of 1 to kMaxRingFrameBytes bytes (EMSGSIZE); false if there is no room for it. EPROTO: the peer's
  // index is impossible.
  Result<bool> Push(std::span<const iovec> frame);
  // True once if the consumer is asleep and a frame was published since the last call: the caller signals its eventfd.
  bool TakeWakeRequest();
  // Whether less than half of the ring is free. Then the consumer has been asked for a signal when it is.
  Result<bool> Congested();

 private:
  Result<uint32_t> FreeBytes() const;
  void CopyIn(const std::byte* from, size_t bytes);

  PacketRingMemory* memory_;
  uint32_t head_;
  uint32_t written_ = 0;  // of the frame in hand, from head_ on
  bool untold_ = true;    // whoever had this end before may have ended in the middle
};

class PacketConsumer {
 public:
  explicit PacketConsumer(PacketRingMemory* memory) : memory_(memory), tail_(memory->tail.load()) {}

  // Takes the next frame; its size in bytes, or 0 if there is none. One that is longer than the space loses its end.
  Result<size_t> Pop(std::span<const iovec> space);
  // Says that this end sleeps; false, and taken back, if there is a frame after all.
  bool PrepareToSleep();
  // True once if the producer waits and half of the ring is free: the caller signals its eventfd.
  bool TakeRoomRequest();

 private:
  void CopyOut(uint32_t at, std::byte* to, size_t bytes) const;

  PacketRingMemory* memory_;
  uint32_t tail_;
};

// Both directions between a net process and its outside.
struct PacketLinkMemory {
  PacketRingMemory to_net;
  PacketRingMemory to_outside;
};

// For the broker: sealed shared memory, all rings empty. `name` appears in /proc/PID/maps.
Result<OwnFd> MakePacketLink(const std::string& name);
// Maps it.
Result<PacketLinkMemory*> MapPacketLink(int file);

}  // namespace bulkhead
