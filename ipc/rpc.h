// SPDX-License-Identifier: Apache-2.0
// Cap'n Proto RPC over one socketpair with descriptors attached to capabilities. Main thread of any process (the
// control plane's event loop).
#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>

#include <string>
#include <vector>

#include "ipc/control.capnp.h"
#include "ipc/fd.h"

namespace bulkhead {

// Where a child finds its connection to the broker. Beside it, 0, 1 and 2 it is born with ipc/broker_link.h's.
inline constexpr int kControlFd = 3;

// The most descriptors one message may carry (the kernel's SCM_MAX_FD is 253).
inline constexpr unsigned kMaxFdsPerMessage = 250;

// What a peer that offers a capability does with descriptors that come with messages to it.
enum class Descriptors { kRefused, kTaken };

// Whether a socket does not block already; else it is made so, which takes a system call.
enum class SocketMode { kAny, kNonBlocking };

// One end of a two-party connection.
class RpcConnection {
 public:
  // `bootstrap` is what the peer gets; messages are bounded, since the peer may be hostile.
  RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, capnp::Capability::Client bootstrap,
                Descriptors descriptors);
  // A connection that offers nothing itself, and takes descriptors.
  RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, SocketMode mode = SocketMode::kAny);

  // What the peer offers. Once the connection has ended its calls fail as such: capnp's system would not have it so,
  // and use its network again.
  template <typename Interface>
  typename Interface::Client Bootstrap() {
    if (ended_) return capnp::Capability::Client(Disconnected()).template castAs<Interface>();
    capnp::MallocMessageBuilder message;
    auto vat = message.initRoot<capnp::rpc::twoparty::VatId>();
    vat.setSide(side_ == capnp::rpc::twoparty::Side::CLIENT ? capnp::rpc::twoparty::Side::SERVER
                                                            : capnp::rpc::twoparty::Side::CLIENT);
    return system_.bootstrap(vat).template castAs<Interface>();
  }
  // Resolves when the peer is gone.
  kj::Promise<void> OnDisconnect() { return network_.onDisconnect(); }

 private:
  static kj::Exception Disconnected();

  bool ended_ = false;
  capnp::rpc::twoparty::Side side_;
  kj::Own<kj::AsyncCapabilityStream> stream_;
  capnp::TwoPartyVatNetwork network_;
  capnp::RpcSystem<capnp::rpc::twoparty::VatId> system_;
};

// A File capability for a descriptor; the descriptor lives as long as the capability.
control::File::Client MakeFile(OwnFd fd);
// One for a duplicate of `fd`.
control::File::Client ShareFile(int fd);

// The descriptor behind a File that the peer sent, as this process's own; EBADF if there is none.
OwnFd TakeFile(control::File::Client file, kj::WaitScope& wait);
// The same for who may not wait; without one it fails.
kj::Promise<OwnFd> AwaitFile(control::File::Client file);

std::vector<OwnFd> TakeFiles(capnp::List<control::File>::Reader files, kj::WaitScope& wait);

// Sends without waiting for the answer: for news to a peer that, if it cannot take them, ends this process anyway.
template <typename Request>
void SendAndForget(Request request) {
  request.send().ignoreResult().detach([](kj::Exception&&) {});
}

// The exception by which a call fails with one line for the user.
kj::Exception Failure(const std::string& line);
// What the user is told of an exception that came over a connection: its text without the transport's prefix.
std::string ReasonOf(const kj::Exception& exception);

// Both ends of a connection: the first is kept, the second given away.
std::pair<OwnFd, OwnFd> MakeSocketPair();

}  // namespace bulkhead
