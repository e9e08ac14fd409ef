// SPDX-License-Identifier: Apache-2.0
#include "ipc/ring.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace bulkhead {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

// Sleeps while *word == expected, at most until the deadline. Spurious returns are the caller's business.
void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, Deadline deadline) {
  const timespec until{.tv_sec = deadline.at_ns / kNsPerSecond, .tv_nsec = deadline.at_ns % kNsPerSecond};
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_BITSET, expected, &until, nullptr,
            FUTEX_BITSET_MATCH_ANY);
}

void FutexWake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

Error BrokenProtocol(const char* what) { return Error{EPROTO, what}; }

bool SingleProcessor() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1;
}

}  // namespace

int64_t MonotonicNow() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

Deadline Deadline::After(int64_t duration_ns) { return Deadline{MonotonicNow() + duration_ns}; }

bool Deadline::Passed() const { return MonotonicNow() >= at_ns; }

Result<bool> RingProducer::HasRoom() const {
  const uint32_t used = head_ - memory_->tail.load(std::memory_order_acquire);
  if (used > kRingSlots) return BrokenProtocol("ring consumer index out of range");
  return used < kRingSlots;
}

Result<void> RingProducer::Push(std::span<const std::byte> frame, Deadline deadline) {
  if (frame.size() > kFrameCapacity) return Error{EMSGSIZE, "frame larger than a ring slot"};
  for (;;) {
    const uint32_t seen_tail = memory_->tail.load(std::memory_order_acquire);
    auto room = HasRoom();
    if (!room.ok()) return room.error();
    if (*room) break;
    if (deadline.Passed()) return Error{ETIMEDOUT, "ring full until the deadline"};
    memory_->producer_waiting.store(1, std::memory_order_seq_cst);
    if (memory_->tail.load(std::memory_order_seq_cst) == seen_tail) FutexWait(memory_->tail, seen_tail, deadline);
    memory_->producer_waiting.store(0, std::memory_order_relaxed);
  }
  Fill(head_, frame);
  memory_->head.store(++head_, std::memory_order_seq_cst);
  return {};
}

void RingProducer::Fill(uint32_t index, std::span<const std::byte> frame) {
  RingSlot& slot = memory_->slots[index % kRingSlots];
  slot.length_bytes = static_cast<uint32_t>(frame.size());
  std::memcpy(slot.bytes.data(), frame.data(), frame.size());
}

void RingProducer::PublishLast(std::span<const std::byte> frame) {
  Fill(head_ - 1, frame);
  memory_->head.store(head_, std::memory_order_seq_cst);
  WakeFutex();
}

bool RingProducer::TakeWakeRequest() {
  // seq_cst on both sides: either we see the announcement, or the consumer's second look sees our frame.
  if (memory_->consumer_sleeping.load(std::memory_order_seq_cst) == 0) return false;
  return memory_->consumer_sleeping.exchange(0, std::memory_order_seq_cst) != 0;
}

void RingProducer::WakeFutex() {
  if (memory_->consumer_sleeping.load(std::memory_order_seq_cst) != 0) FutexWake(memory_->head);
}

Result<bool> RingConsumer::Pop(Frame& frame) {
  auto taken = Take(frame);
  if (taken.ok() && *taken) GiveBack();
  return taken;
}

Result<bool> RingConsumer::Take(Frame& frame) {
  const uint32_t ready = memory_->head.load(std::memory_order_acquire) - tail_;
  if (ready == 0) return false;
  if (ready > kRingSlots) return BrokenProtocol("ring producer index out of range");
  const RingSlot& slot = memory_->slots[tail_ % kRingSlots];
  // One read of the length: the peer may change it after the check.
  const uint32_t length = std::atomic_ref(const_cast<uint32_t&>(slot.length_bytes)).load(std::memory_order_relaxed);
  if (length > kFrameCapacity) return BrokenProtocol("frame longer than its slot");
  frame.length_bytes = length;
  std::memcpy(frame.bytes.data(), slot.bytes.data(), length);
  ++tail_;
  return true;
}

void RingConsumer::GiveBack() {
  memory_->tail.store(tail_, std::memory_order_seq_cst);
  if (memory_->producer_waiting.load(std::memory_order_seq_cst) != 0) FutexWake(memory_->tail);
}

bool RingConsumer::PrepareToSleep() {
  memory_->consumer_sleeping.store(1, std::memory_order_seq_cst);
  if (memory_->head.load(std::memory_order_seq_cst) == tail_) return true;
  WakeUp();
  return false;
}

Result<void> RingConsumer::WaitFutex(AdaptiveSpin& spin, Deadline deadline) {
  while (!spin.Until([this] { return !Empty(); })) {
    if (deadline.Passed()) return Error{ETIMEDOUT, "no answer until the deadline"};
    if (PrepareToSleep()) FutexWait(memory_->head, tail_, deadline);
    WakeUp();
  }
  return {};
}

AdaptiveSpin::AdaptiveSpin(int64_t limit_ns) : limit_ns_(SingleProcessor() ? 0 : limit_ns), budget_ns_(limit_ns_) {}

void AdaptiveSpin::Learn(bool paid) {
  budget_ns_ = paid ? limit_ns_ : budget_ns_ / 2;
  if (budget_ns_ < limit_ns_ / 16) budget_ns_ = 0;
}

void PoisonChannel(ChannelMemory* channel) {
  // An index half the number space away is impossible for any state of the other end, which then sees a broken
  // protocol; and a changed word cannot be missed between the look and the sleep.
  constexpr uint32_t kFarAway = 0x8000'0000;
  for (RingMemory* ring : {&channel->requests, &channel->replies}) {
    ring->head.fetch_add(kFarAway);
    ring->tail.fetch_add(kFarAway);
    FutexWake(ring->head);
    FutexWake(ring->tail);
  }
}

uint64_t ChannelBytes() {
  constexpr uint64_t kPage = 4096;
  return (sizeof(ChannelMemory) + kPage - 1) / kPage * kPage;
}

Result<ChannelMemory*> MapChannel(int file) {
  void* memory = ::mmap(nullptr, ChannelBytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return ErrnoError(errno, "map an exit channel");
  return static_cast<ChannelMemory*>(memory);
}

}  // namespace bulkhead
