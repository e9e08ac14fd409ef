// SPDX-License-Identifier: Apache-2.0
// What stands between libslirp and the C library: this executable defines the calls by which the library reaches the
// host, and the dynamic linker prefers these. So the rules are kept at the last step before the kernel, where the
// destination is the real one, whatever the library made of a packet. They are functions of C, so there is one object
// behind them in the process. Usernet process: main thread before lock-down, then the device thread. The library's
// arguments come from the guest's packets: hostile.
#pragma once

#include <sys/socket.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "device-procs/usernet/egress.h"
#include "ipc/fd.h"

namespace bulkhead::usernet {

class SocketCalls {
 public:
  // From now on the process's calls are this object's; there is never a second one.
  SocketCalls(Egress egress, control::UserNet::Reader settings);
  ~SocketCalls();
  SocketCalls(const SocketCalls&) = delete;
  SocketCalls& operator=(const SocketCalls&) = delete;

  // The next socket that the library asks for is this one, which is bound, and listens, already. It stays the caller's
  // and open.
  void Adopt(const OwnFd& socket) { adopted_ = socket.get(); }
  // The library has set it up. Whoever is heard at a port of UDP may be answered there.
  void Adopted(bool udp) {
    if (udp) peers_[*adopted_];
    adopted_.reset();
  }
  // No descriptor was left for a connection that came in: for a while none is looked for.
  bool TakeOutOfDescriptors() { return std::exchange(out_of_descriptors_, false); }

  int Socket(int family, int type, int protocol) const;
  int Connect(int fd, const sockaddr* address, socklen_t bytes) const;
  ssize_t SendTo(int fd, const void* data, size_t size, int flags, const sockaddr* address, socklen_t bytes) const;
  ssize_t ReceiveFrom(int fd, void* data, size_t size, int flags, sockaddr* address, socklen_t* bytes);
  int Accept(int fd, sockaddr* address, socklen_t* bytes);
  int SetOption(int fd, int level, int option, const void* value, socklen_t bytes) const;
  // Whether a call that prepares a socket is about one that needs no preparation.
  bool IsAdopted(int fd) const { return adopted_ == fd; }
  // What the library reads as /etc/resolv.conf; empty: there is none.
  const std::string& resolvers() const { return resolvers_; }

 private:
  const Egress egress_;
  std::string resolvers_;
  std::optional<int> adopted_;
  // Of each socket of a forwarded UDP port: who was heard there of late, and so may be answered.
  std::map<int, std::deque<Endpoint>> peers_;
  bool out_of_descriptors_ = false;
};

}  // namespace bulkhead::usernet
