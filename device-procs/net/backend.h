// SPDX-License-Identifier: Apache-2.0
// What the virtio side of a network interface asks of whatever its packets come from and go to. Packets are whole
// Ethernet frames behind a PacketHeader.
#pragma once

#include <sys/uio.h>

#include <span>

#include "device-procs/net/packet.h"
#include "ipc/result.h"

namespace bulkhead::device {

// The way of one pair of queues to the outside. The pair's thread.
class NetPort {
 public:
  virtual ~NetPort() = default;

  // Becomes readable, edge-triggered, when packets arrive, when there is room again, and when the outside is gone.
  virtual int fd() const = 0;
  // Sends one packet; one that cannot be sent is lost, as on any wire. The error says why: ENODEV that the outside is
  // gone. EAGAIN: there is no room, and the packet may be sent again when there is.
  virtual Result<void> Send(std::span<const iovec> packet) = 0;
  // A batch is sent; the outside need not have been told of it before.
  virtual void Flush() {}
  // Takes the next packet in; its size in bytes, or 0 if there is none. One that is longer than the space loses its
  // end. ENODEV: the outside is gone.
  virtual Result<size_t> Receive(std::span<const iovec> space) = 0;
};

// Device thread, but for what is said of ports.
class NetBackend {
 public:
  virtual ~NetBackend() = default;

  virtual uint16_t pair_count() const = 0;
  // Whether packets either way may be without checksums, or not yet cut into segments.
  virtual bool has_offloads() const = 0;
  // Lives as long as the back end.
  virtual NetPort& port(uint16_t pair) = 0;
  // What packets on their way to the guest may be without: checksums, and being cut into segments.
  virtual void SetOffloads(const Offloads& offloads) = 0;
  // Packets arrive at the first `count` ports from now on.
  virtual void SetActivePairs(uint16_t count) = 0;
  // Whether the outside is gone, for where somebody else uses the ports and would be the one to find out.
  virtual bool IsGone() { return false; }
};

}  // namespace bulkhead::device
