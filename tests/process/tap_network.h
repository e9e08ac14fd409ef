// SPDX-License-Identifier: Apache-2.0
// A tap in a network namespace of its own, seen from the host's side by a packet socket. Only root can make it; nothing
// of it is left when it ends.
#pragma once

#include <string>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead::test {

class TapNetwork {
 public:
  static bool Possible();
  // With so many queues, opened as the launcher opens them.
  explicit TapNetwork(unsigned queues);

  std::vector<OwnFd> TakeQueues() { return std::move(queues_); }
  // Leaves the tap to whoever opens "tap0" in that namespace, and takes the calling process there. What is needed after
  // a fork takes no memory.
  void LeaveToOthers();
  bool Enter() const;
  void Send(const std::string& frame) const;
  // False, with errno, where there is no room for one more.
  bool TrySend(const std::string& frame) const;
  // False if none comes within that time.
  bool WaitForFrame(int timeout_ms) const;
  // The next frame of the tests' EtherType that came out of the tap; empty after a time that only a hang takes.
  std::string Receive() const;
  // Whether one is there now.
  bool HasFrame() const { return WaitForFrame(0); }
  // Whether whoever holds the queues takes packets of TCP that are yet to be cut into segments.
  bool TakesLargePackets() const;
  // Takes the interface away, whoever has it open.
  void RemoveTap() const;

 private:
  std::vector<OwnFd> queues_;
  OwnFd namespace_;
  OwnFd socket_;
  OwnFd routes_;  // a netlink socket in there
};

// A frame of the tests' EtherType.
std::string TestFrame(size_t bytes, uint8_t to, uint8_t from);

}  // namespace bulkhead::test
