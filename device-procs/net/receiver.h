// SPDX-License-Identifier: Apache-2.0
// Carries packets from a port to its receive queue: straight into the buffers that the driver gave, of which one packet
// takes as many as it needs where they can be merged (virtio 1.2 §5.1.6.3, §5.1.6.4). The end of a packet for which
// there were not enough waits in a private buffer. The pair's thread. Chains are the guest's, packets anyone's:
// hostile.
#pragma once

#include <array>
#include <vector>

#include "device-procs/common/throttle.h"
#include "device-procs/net/backend.h"
#include "device-procs/net/counters.h"
#include "device-procs/net/net_queue.h"
#include "device-procs/net/notifier.h"
#include "device-procs/net/receive_filter.h"

namespace bulkhead::device {

class Receiver {
 public:
  // All outlive it.
  Receiver(const GuestMemory& memory, NetPort& port, Throttle& throttle);

  void Start(NetQueue queue, uint64_t features);
  // Buffers that hold nothing yet are the driver's again; a packet in hand is lost.
  void End();
  // Down: what arrives is lost.
  void SetLink(bool up) { link_up_ = up; }
  void SetFilter(ReceiveFilter filter) { filter_ = std::move(filter); }

  // There are packets at the port, or may be.
  void PortReadable() { readable_ = true; }
  // Takes packets in, as many as may be at a time; true if there may be more, and room for them.
  bool Serve();
  // Asks for a kick if buffers are what is missing; true if there are some already.
  bool EnableKicks() { return starved_ && queue_.EnableKicks(); }
  // How long the throttle keeps it from the next packet, as Serve found.
  uint64_t throttled_ns() const { return throttled_ns_; }
  void SetCoalescing(const CoalesceLimits& limits) { notifier_.SetLimits(limits); }
  // When Serve has to be called again for an interrupt that is held back, by Throttle's clock; 0: it need not.
  uint64_t notification_due_ns() const { return notifier_.due_ns(); }
  // The port's outside is gone.
  bool gone() const { return gone_; }
  const NetCounters& counters() const { return counters_; }

 private:
  // A chain that was taken from the queue and is still empty.
  struct Room {
    uint16_t head = 0;
    uint64_t size_bytes = 0;
    size_t vectors = 0;
  };
  // The beginning of a packet, which is looked at and changed before the guest gets it.
  struct Head {
    PacketHeader header;
    std::array<std::byte, kFilteredBytes> frame;
  };
  static_assert(sizeof(Head) == sizeof(PacketHeader) + kFilteredBytes);

  bool Gather(uint64_t bytes);
  bool AddRoom();
  bool TakePacket();
  bool DropNext();
  size_t Next();
  Result<size_t> Read();
  bool Wants(size_t packet_bytes);
  bool Deliver();
  void CopyToRooms(uint64_t offset, std::span<const std::byte> from) const;
  void Drop();

  const GuestMemory& memory_;
  NetPort& port_;
  Throttle& throttle_;
  NetQueue queue_;
  Notifier notifier_{queue_};
  Offloads offloads_;
  bool merges_ = false;
  ReceiveFilter filter_;
  bool link_up_ = true;
  bool readable_ = false;
  bool starved_ = false;
  bool gone_ = false;
  uint64_t throttled_ns_ = 0;
  NetCounters counters_;

  Chain chain_;
  std::vector<Room> rooms_;
  std::vector<iovec> room_vectors_;  // of all rooms, one after the other
  uint64_t room_bytes_ = 0;
  std::vector<iovec> vectors_;
  std::vector<UsedChain> used_;

  // The packet in hand: its beginning, and what of its end the rooms of that time did not hold.
  size_t packet_bytes_ = 0;  // 0: none
  size_t in_rooms_ = 0;
  Head head_;
  std::vector<std::byte> rest_;
};

}  // namespace bulkhead::device
