// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/receiver.h"

#include <algorithm>
#include <cstring>

#include "device-procs/net/features.h"

namespace bulkhead::device {
namespace {

// Before the thread sees to its other direction.
constexpr unsigned kPacketsAtATime = 64;
// What nearly every packet fits that is not to be cut into segments; the end of a larger one is copied.
constexpr uint64_t kUsualPacketBytes = 2048;
// A chain can add up to twice the length of a queue.
constexpr size_t kMaxRoomVectors = kMaxVectors / 2 - 2;

}  // namespace

// One byte more than a packet can have tells that it has too many.
Receiver::Receiver(const GuestMemory& memory, NetPort& port, Throttle& throttle)
    : memory_(memory), port_(port), throttle_(throttle), rest_(kMaxPacketBytes + 1) {}

void Receiver::Start(NetQueue queue, uint64_t features) {
  queue_ = queue;
  offloads_ = ReceiveOffloads(features);
  merges_ = (features & net_feature::kMergeBuffers) != 0;
  readable_ = true;
}

void Receiver::End() {
  notifier_.Flush();
  queue_.UndoPop(static_cast<uint16_t>(rooms_.size()));
  queue_ = {};
  rooms_.clear();
  room_vectors_.clear();
  room_bytes_ = 0;
  packet_bytes_ = 0;
  starved_ = false;
  throttled_ns_ = 0;
}

bool Receiver::Serve() {
  starved_ = false;
  throttled_ns_ = 0;
  if (!queue_.served()) return false;
  queue_.DisableKicks();
  unsigned left = kPacketsAtATime;
  for (; left != 0; --left) {
    if (!link_up_) {
      if (!DropNext()) break;
      continue;
    }
    if (packet_bytes_ == 0) {
      if (!readable_) break;
      if (throttle_.limited() && (throttled_ns_ = throttle_.WaitNs(Throttle::NowNs())) != 0) break;
      // Fewer than a large packet may need are good for a small one.
      Gather(offloads_.tso4 || offloads_.tso6 ? kMaxPacketBytes : kUsualPacketBytes);
      starved_ = room_bytes_ < sizeof(Head);
      if (starved_ || !TakePacket()) break;
    }
    starved_ = packet_bytes_ != 0 && !Deliver();
    if (starved_) break;
  }
  notifier_.BatchDone();
  return left == 0;
}

// Takes chains until they have room for so many bytes; false if there are not so many.
bool Receiver::Gather(uint64_t bytes) {
  while (room_bytes_ < bytes) {
    const bool full = room_vectors_.size() >= kMaxRoomVectors || (!merges_ && !rooms_.empty());
    if (full || !AddRoom()) return false;
  }
  return true;
}

bool Receiver::AddRoom() {
  if (!queue_.Pop(chain_)) return false;
  const uint64_t bytes = TotalBytes(chain_.writable);
  const size_t vectors_before = room_vectors_.size();
  // §5.1.6.3.1 asks for more than that; where buffers are merged any will do.
  const uint64_t fewest = merges_ ? 1 : sizeof(Head);
  if (bytes < fewest || !TranslatePieces(memory_, chain_.writable, 0, bytes, room_vectors_).ok()) {
    room_vectors_.resize(vectors_before);
    queue_.Break();
    return false;
  }
  rooms_.push_back({chain_.head, bytes, room_vectors_.size() - vectors_before});
  room_bytes_ += bytes;
  return true;
}

// False: there is none, or no more. True: it is in hand, unless it was not wanted.
bool Receiver::TakePacket() {
  const size_t bytes = Next();
  if (bytes == 0) return false;
  if (throttle_.limited()) throttle_.Charge(Throttle::NowNs(), bytes - std::min(bytes, sizeof(PacketHeader)), 1);
  if (bytes > kMaxPacketBytes || !Wants(bytes) || (!merges_ && bytes > room_bytes_)) {
    Drop();
    return true;
  }
  packet_bytes_ = bytes;
  in_rooms_ = std::min<uint64_t>(packet_bytes_, room_bytes_);
  return true;
}

// The packet in hand, or the next of the port: left there it would arrive once the link is up. False: there is none.
bool Receiver::DropNext() {
  if (packet_bytes_ == 0 && (!readable_ || Next() == 0)) return false;
  Drop();
  return true;
}

// The size of the next packet, which is read then; 0: there is none.
size_t Receiver::Next() {
  const auto read = Read();
  if (read.ok() && *read != 0) return *read;
  readable_ = false;
  gone_ = gone_ || (!read.ok() && read.error().code == ENODEV);
  return 0;
}

Result<size_t> Receiver::Read() {
  vectors_.assign({iovec{&head_, sizeof head_}});
  size_t skip = sizeof head_;
  for (const iovec& piece : room_vectors_) {
    const size_t skipped = std::min(skip, piece.iov_len);
    skip -= skipped;
    if (skipped == piece.iov_len) continue;
    vectors_.push_back({static_cast<std::byte*>(piece.iov_base) + skipped, piece.iov_len - skipped});
  }
  vectors_.push_back({rest_.data(), rest_.size()});
  const auto read = port_.Receive(vectors_);
  // Also of a packet that is not wanted.
  if (read.ok()) memory_.NoteWritten(vectors_, *read);
  return read;
}

bool Receiver::Wants(size_t packet_bytes) {
  if (packet_bytes < sizeof(PacketHeader) + kEthernetBytes) return false;
  const size_t frame_bytes = packet_bytes - sizeof(PacketHeader);
  return CheckReceivedHeader(head_.header, frame_bytes, offloads_) &&
         filter_.Wants(std::span(head_.frame).first(std::min(frame_bytes, kFilteredBytes)));
}

void Receiver::Drop() {
  packet_bytes_ = 0;
  counters_.dropped.Add(1);
}

// Gives the packet in hand to the driver; false if that needs more buffers.
bool Receiver::Deliver() {
  if (!Gather(packet_bytes_)) {
    // The driver's buffers are so small that no packet of this size ever fits.
    if (room_vectors_.size() < kMaxRoomVectors) return false;
    Drop();
    return true;
  }
  CopyToRooms(in_rooms_, std::span(rest_).first(packet_bytes_ - in_rooms_));
  used_.clear();
  size_t vectors = 0;
  for (uint64_t left = packet_bytes_; left != 0;) {
    const Room& room = rooms_[used_.size()];
    const uint64_t bytes = std::min(left, room.size_bytes);
    used_.push_back({room.head, static_cast<uint32_t>(bytes)});
    vectors += room.vectors;
    room_bytes_ -= room.size_bytes;
    left -= bytes;
  }
  head_.header.buffers = static_cast<uint16_t>(used_.size());
  CopyToRooms(0, std::as_bytes(std::span(&head_, 1)).first(std::min(packet_bytes_, sizeof head_)));
  queue_.Push(used_);
  notifier_.PacketDone();
  rooms_.erase(rooms_.begin(), rooms_.begin() + static_cast<ptrdiff_t>(used_.size()));
  room_vectors_.erase(room_vectors_.begin(), room_vectors_.begin() + static_cast<ptrdiff_t>(vectors));
  counters_.packets.Add(1);
  counters_.bytes.Add(packet_bytes_ - sizeof(PacketHeader));
  packet_bytes_ = 0;
  return true;
}

void Receiver::CopyToRooms(uint64_t offset, std::span<const std::byte> from) const {
  for (const iovec& piece : room_vectors_) {
    if (from.empty()) return;
    if (offset >= piece.iov_len) {
      offset -= piece.iov_len;
      continue;
    }
    const size_t bytes = std::min<uint64_t>(from.size(), piece.iov_len - offset);
    const iovec part{static_cast<std::byte*>(piece.iov_base) + offset, bytes};
    std::memcpy(part.iov_base, from.data(), bytes);
    memory_.NoteWritten(std::span(&part, 1), bytes);
    from = from.subspan(bytes);
    offset = 0;
  }
}

}  // namespace bulkhead::device
