// SPDX-License-Identifier: Apache-2.0
#include "ipc/packet_ring.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace bulkhead {
namespace {

static_assert((kPacketRingBytes & (kPacketRingBytes - 1)) == 0 && std::atomic<uint32_t>::is_always_lock_free);

constexpr uint32_t kLengthBytes = sizeof(uint32_t);
// So that a length never wraps around the ring's end.
constexpr uint32_t kAlignment = 8;

Error BrokenProtocol(const char* what) { return Error{EPROTO, what}; }

// What a frame takes up.
uint32_t RecordBytes(size_t frame_bytes) {
  return static_cast<uint32_t>((kLengthBytes + frame_bytes + kAlignment - 1) / kAlignment * kAlignment);
}

size_t TotalBytes(std::span<const iovec> pieces) {
  size_t bytes = 0;
  for (const iovec& piece : pieces) bytes += piece.iov_len;
  return bytes;
}

}  // namespace

Result<uint32_t> PacketProducer::FreeBytes() const {
  const uint32_t used = head_ - memory_->tail.load(std::memory_order_seq_cst);
  if (used > kPacketRingBytes) return BrokenProtocol("packet consumer index out of range");
  return kPacketRingBytes - used;
}

Result<bool> PacketProducer::Push(std::span<const iovec> frame) {
  const size_t bytes = TotalBytes(frame);
  if (bytes == 0 || bytes > kMaxRingFrameBytes) return Error{EMSGSIZE, "a frame of a size that no ring carries"};
  const auto free = FreeBytes();
  if (!free.ok()) return free.error();
  if (*free < RecordBytes(bytes)) return false;
  const auto length = static_cast<uint32_t>(bytes);
  written_ = 0;
  CopyIn(reinterpret_cast<const std::byte*>(&length), sizeof length);
  for (const iovec& piece : frame) CopyIn(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
  head_ += RecordBytes(bytes);
  memory_->head.store(head_, std::memory_order_seq_cst);
  untold_ = true;
  return true;
}

void PacketProducer::CopyIn(const std::byte* from, size_t bytes) {
  const uint32_t at = (head_ + written_) % kPacketRingBytes;
  const size_t first = std::min<size_t>(bytes, kPacketRingBytes - at);
  if (bytes != 0) std::memcpy(memory_->bytes.data() + at, from, first);
  if (first != bytes) std::memcpy(memory_->bytes.data(), from + first, bytes - first);
  written_ += static_cast<uint32_t>(bytes);
}

bool PacketProducer::TakeWakeRequest() {
  if (!std::exchange(untold_, false)) return false;
  // seq_cst on both sides: either we see the announcement, or the consumer's second look sees our frame.
  if (memory_->consumer_sleeping.load(std::memory_order_seq_cst) == 0) return false;
  return memory_->consumer_sleeping.exchange(0, std::memory_order_seq_cst) != 0;
}

Result<bool> PacketProducer::Congested() {
  auto free = FreeBytes();
  if (!free.ok()) return free.error();
  if (*free >= kPacketRingBytes / 2) return false;
  memory_->producer_waiting.store(1, std::memory_order_seq_cst);
  // What became free before that is nobody's to tell.
  free = FreeBytes();
  if (!free.ok()) return free.error();
  return *free < kPacketRingBytes / 2;
}

Result<size_t> PacketConsumer::Pop(std::span<const iovec> space) {
  const uint32_t ready = memory_->head.load(std::memory_order_acquire) - tail_;
  if (ready == 0) return size_t{0};
  if (ready > kPacketRingBytes || ready < kAlignment) return BrokenProtocol("packet producer index out of range");
  // One read of the length: the peer may change it after the check.
  uint32_t length;
  CopyOut(tail_, reinterpret_cast<std::byte*>(&length), sizeof length);
  if (length == 0 || length > kMaxRingFrameBytes) return BrokenProtocol("a packet of a size that no frame has");
  if (RecordBytes(length) > ready) return BrokenProtocol("a packet that ends beyond what was published");
  uint32_t at = tail_ + kLengthBytes;
  size_t left = length;
  for (const iovec& piece : space) {
    const size_t bytes = std::min(left, piece.iov_len);
    CopyOut(at, static_cast<std::byte*>(piece.iov_base), bytes);
    at += static_cast<uint32_t>(bytes);
    left -= bytes;
  }
  tail_ += RecordBytes(length);
  memory_->tail.store(tail_, std::memory_order_seq_cst);
  return size_t{length};
}

void PacketConsumer::CopyOut(uint32_t at, std::byte* to, size_t bytes) const {
  at %= kPacketRingBytes;
  const size_t first = std::min<size_t>(bytes, kPacketRingBytes - at);
  if (bytes != 0) std::memcpy(to, memory_->bytes.data() + at, first);
  if (first != bytes) std::memcpy(to + first, memory_->bytes.data(), bytes - first);
}

bool PacketConsumer::PrepareToSleep() {
  memory_->consumer_sleeping.store(1, std::memory_order_seq_cst);
  if (memory_->head.load(std::memory_order_seq_cst) == tail_) return true;
  memory_->consumer_sleeping.store(0, std::memory_order_relaxed);
  return false;
}

bool PacketConsumer::TakeRoomRequest() {
  if (memory_->producer_waiting.load(std::memory_order_seq_cst) == 0) return false;
  if (memory_->head.load(std::memory_order_relaxed) - tail_ > kPacketRingBytes / 2) return false;
  return memory_->producer_waiting.exchange(0, std::memory_order_seq_cst) != 0;
}

Result<OwnFd> MakePacketLink(const std::string& name) {
  static_assert(sizeof(PacketLinkMemory) % 4096 == 0);
  return MakeSealedMemory(name, sizeof(PacketLinkMemory));
}

Result<PacketLinkMemory*> MapPacketLink(int file) {
  void* memory = ::mmap(nullptr, sizeof(PacketLinkMemory), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return ErrnoError(errno, "map the packet rings");
  return static_cast<PacketLinkMemory*>(memory);
}

}  // namespace bulkhead
