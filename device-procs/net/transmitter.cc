// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/transmitter.h"

#include <algorithm>
#include <utility>

namespace bulkhead::device {
namespace {

// Before the thread sees to its other direction.
constexpr unsigned kPacketsAtATime = 64;

}  // namespace

Transmitter::Transmitter(const GuestMemory& memory, NetPort& port, const SourceGuard& guard, Throttle& throttle,
                         Log log)
    : memory_(memory), port_(port), guard_(guard), throttle_(throttle), log_(std::move(log)) {}

void Transmitter::Start(NetQueue queue, uint64_t features) {
  queue_ = queue;
  offloads_ = TransmitOffloads(features);
  throttled_ns_ = 0;
}

void Transmitter::End() {
  notifier_.Flush();
  queue_ = {};
}

bool Transmitter::Serve() {
  throttled_ns_ = 0;
  blocked_ = false;
  if (!queue_.served()) return false;
  queue_.DisableKicks();
  unsigned left = kPacketsAtATime;
  while (left != 0) {
    if (throttle_.limited() && (throttled_ns_ = throttle_.WaitNs(Throttle::NowNs())) != 0) break;
    if (!queue_.Pop(chain_)) break;
    const bool sent = link_up_ && Send(chain_);
    if (blocked_) {
      queue_.UndoPop(1);
      break;
    }
    if (!sent) counters_.dropped.Add(1);
    queue_.Push({chain_.head, 0});
    notifier_.PacketDone();
    --left;
  }
  port_.Flush();
  notifier_.BatchDone();
  return left == 0;
}

bool Transmitter::Send(const Chain& chain) {
  const uint64_t packet_bytes = TotalBytes(chain.readable);
  if (packet_bytes < sizeof(PacketHeader) + kEthernetBytes || packet_bytes > kMaxPacketBytes) return false;
  const uint64_t frame_bytes = packet_bytes - sizeof(PacketHeader);
  struct {
    PacketHeader header;
    std::array<std::byte, kGuardedBytes> frame;
  } copy;
  static_assert(sizeof copy == sizeof(PacketHeader) + kGuardedBytes);
  const size_t copied = std::min<uint64_t>(packet_bytes, sizeof copy);
  const auto bytes = std::as_writable_bytes(std::span(&copy, 1)).first(copied);
  if (!ReadPieces(memory_, chain.readable, 0, bytes).ok()) return false;
  if (!CheckHeader(copy.header, frame_bytes, offloads_)) return false;
  if (!guard_.Allows(std::span(copy.frame).first(copied - sizeof(PacketHeader)))) {
    Refuse();
    return false;
  }
  vectors_.assign({iovec{&copy, copied}});
  if (!TranslatePieces(memory_, chain.readable, copied, packet_bytes - copied, vectors_).ok()) return false;
  if (vectors_.size() > kMaxVectors) return false;
  const auto sent = port_.Send(vectors_);
  blocked_ = !sent.ok() && sent.error().code == EAGAIN;
  if (throttle_.limited() && !blocked_) throttle_.Charge(Throttle::NowNs(), frame_bytes, 1);
  if (!sent.ok()) {
    gone_ = gone_ || sent.error().code == ENODEV;
    return false;
  }
  counters_.packets.Add(1);
  counters_.bytes.Add(frame_bytes);
  return true;
}

void Transmitter::Refuse() {
  counters_.refused.Add(1);
  // Once is enough for whoever reads it: a guest that does this does it often.
  if (!std::exchange(told_, true))
    log_("the guest sends packets with addresses that are not its own; they are dropped");
}

}  // namespace bulkhead::device
