// SPDX-License-Identifier: Apache-2.0
// A child's way to its broker, which outlives that broker: a child does not depend on who supervises it. When its
// connection ends it goes on with its work, and its next broker's connection comes by a socket that it was born with,
// whose other end the spawner has. What it had to say meanwhile it says then. Any process of a VM, main thread. What
// comes by the socket is the spawner's, who is trusted with more.
#pragma once

#include <kj/async-unix.h>

#include <functional>
#include <list>
#include <optional>
#include <utility>

#include "ipc/rpc.h"

namespace bulkhead {

// Where a child finds that socket: SOCK_SEQPACKET, one connection with each packet.
inline constexpr int kSpareFd = 4;

// Both ends of it: the first is kept by who starts the child, and takes nothing from it.
std::pair<OwnFd, OwnFd> MakeSpareSockets();
// For who started the child: the broker's end of a new connection to it.
Result<OwnFd> SendConnection(const OwnFd& spare);

class BrokerLink {
 public:
  // Makes a call to the broker that there is, and resolves with its answer.
  using Call = std::function<kj::Promise<void>()>;

  // With the connection that the child was born with. Before lock-down.
  explicit BrokerLink(kj::AsyncIoContext& io);

  // What the broker offers this child; for one call, as the next may go to another broker.
  template <typename Interface>
  typename Interface::Client Host() {
    return connection_->Bootstrap<Interface>();
  }
  // Calls one broker after the other until one has answered.
  void Tell(Call call);
  // Returns when there is no broker left and will be none. `go_on` is the first call to each new one.
  void Serve(const Call& go_on);

 private:
  struct Ignore final : kj::TaskSet::ErrorHandler {
    void taskFailed(kj::Exception&&) override {}  // a broker that refuses a call knows why
  };
  // Invalid: there will be none.
  kj::Promise<OwnFd> NextConnection();

  kj::AsyncIoContext& io_;
  OwnFd spare_;
  kj::UnixEventPort::FdObserver spare_observer_;
  std::optional<RpcConnection> connection_;
  unsigned brokers_ = 1;  // that there were
  std::list<Call> unanswered_;
  Ignore ignore_;
  kj::TaskSet tasks_{ignore_};
};

}  // namespace bulkhead
