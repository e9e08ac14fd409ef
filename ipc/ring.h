// SPDX-License-Identifier: Apache-2.0
// A single-producer, single-consumer ring of small frames in memory that two processes share and neither trusts.
// Each end keeps its own index privately and treats everything it reads from shared memory as hostile: an index that
// is further away than the ring is long, or a frame longer than its slot, is a broken protocol (EPROTO), and the peer
// is then no longer spoken to. A frame is copied out whole before anyone looks at it.
//
// A process that takes the place of a dead one goes on where that stood: each end can start at an index. For that, a
// consumer can take frames without giving their slots back, so that they are still there for its successor.
//
// Waiting: the consumer announces that it sleeps; the producer, after publishing, wakes it where it does. A consumer
// in an event loop is woken through an eventfd (the doorbell), one in a vCPU thread by a futex on the head index.
// Each object belongs to one thread at a time.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ipc/result.h"

namespace bulkhead {

inline constexpr uint32_t kRingSlots = 32;
inline constexpr uint32_t kFrameCapacity = 120;  // bytes of one frame: 15 words

struct RingSlot {
  uint32_t length_bytes;
  uint32_t reserved;
  std::array<std::byte, kFrameCapacity> bytes;
};

// The shared layout. Indices run freely and wrap at 2^32.
struct RingMemory {
  alignas(64) std::atomic<uint32_t> head;   // next slot to be filled; written by the producer
  std::atomic<uint32_t> producer_waiting;   // the producer sleeps on `tail`
  alignas(64) std::atomic<uint32_t> tail;   // next slot to be taken; written by the consumer
  std::atomic<uint32_t> consumer_sleeping;  // the consumer wants to be woken
  alignas(64) std::array<RingSlot, kRingSlots> slots;
};
static_assert(sizeof(RingSlot) == 128 && std::atomic<uint32_t>::is_always_lock_free);

// A private copy of one frame.
struct Frame {
  uint32_t length_bytes = 0;
  alignas(8) std::array<std::byte, kFrameCapacity> bytes;
};

// A point on CLOCK_MONOTONIC.
struct Deadline {
  int64_t at_ns = 0;
  static Deadline After(int64_t duration_ns);
  bool Passed() const;
};
int64_t MonotonicNow();

class RingProducer {
 public:
  // `head` frames have been published already.
  explicit RingProducer(RingMemory* memory, uint32_t head = 0) : memory_(memory), head_(head) {}

  // Publishes a frame of at most kFrameCapacity bytes. ETIMEDOUT if the ring stayed full until the deadline, EPROTO if
  // the peer's index is impossible.
  Result<void> Push(std::span<const std::byte> frame, Deadline deadline);
  // For a consumer in an event loop: true once if it was asleep when the last frame was published; the caller rings the
  // doorbell, which a consumer cannot miss however late it comes.
  bool TakeWakeRequest();
  // For a consumer that waits by WaitFutex: wakes it if it sleeps. The announcement stays the consumer's to take back:
  // a wake-up that comes late would else eat a later one, of a sleep that no change of the index has ended yet.
  void WakeFutex();
  // Publishes the last frame again, for a predecessor that may not have come to it. The consumer may have it already:
  // then nothing changes.
  void PublishLast(std::span<const std::byte> frame);

 private:
  Result<bool> HasRoom() const;
  void Fill(uint32_t index, std::span<const std::byte> frame);

  RingMemory* memory_;
  uint32_t head_ = 0;
};

// How long to spin for a peer before sleeping: learned from whether spinning paid of late, nothing where there is only
// one processor. Bounded, so that an idle VM uses none.
class AdaptiveSpin {
 public:
  explicit AdaptiveSpin(int64_t limit_ns);
  // Polls `ready` until it holds or the budget is spent; returns its last value.
  template <typename Ready>
  bool Until(Ready ready);
  // Whether Until would look more than once.
  bool Spins() const { return limit_ns_ != 0 && (budget_ns_ != 0 || (skipped_ + 1) % kSkips == 0); }

 private:
  // So often it is tried again what has not paid.
  static constexpr uint32_t kSkips = 64;

  void Learn(bool paid);

  int64_t limit_ns_;
  int64_t budget_ns_;
  uint32_t skipped_ = 0;
};

class RingConsumer {
 public:
  // `tail` frames have been taken already.
  explicit RingConsumer(RingMemory* memory, uint32_t tail = 0) : memory_(memory), tail_(tail) {}

  // Takes the next frame into `frame`; false if there is none.
  Result<bool> Pop(Frame& frame);
  // The same in two steps: its slot is not filled again before GiveBack, which is for all that were taken.
  Result<bool> Take(Frame& frame);
  void GiveBack();
  uint32_t taken() const { return tail_; }
  bool Empty() const { return memory_->head.load(std::memory_order_acquire) == tail_; }

  // Announces sleep; returns false (and takes it back) if a frame is there after all.
  bool PrepareToSleep();
  void WakeUp() { memory_->consumer_sleeping.store(0, std::memory_order_relaxed); }
  // Spins, then sleeps on the futex until a frame is there; ETIMEDOUT after the deadline.
  Result<void> WaitFutex(AdaptiveSpin& spin, Deadline deadline);

 private:
  RingMemory* memory_;
  uint32_t tail_ = 0;
};

// Both directions of one device's exit channel.
struct ChannelMemory {
  RingMemory requests;  // runner -> device process
  RingMemory replies;   // device process -> runner
};

// Makes every present and later wait on the channel fail with EPROTO: for a peer known to be dead. Any thread.
void PoisonChannel(ChannelMemory* channel);

// Maps the channel from the memfd the broker made (exactly ChannelBytes() long, sealed).
uint64_t ChannelBytes();
Result<ChannelMemory*> MapChannel(int file);

template <typename Ready>
bool AdaptiveSpin::Until(Ready ready) {
  if (ready()) return true;
  if (budget_ns_ == 0 && ++skipped_ % kSkips != 0) return false;
  const int64_t end_ns = MonotonicNow() + (budget_ns_ != 0 ? budget_ns_ : limit_ns_);
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) {
        Learn(true);
        return true;
      }
      __builtin_ia32_pause();
    }
  } while (MonotonicNow() < end_ns);
  Learn(false);
  return false;
}

}  // namespace bulkhead
