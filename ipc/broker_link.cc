// SPDX-License-Identifier: Apache-2.0
#include "ipc/broker_link.h"

#include <sys/socket.h>

#include "ipc/fd_message.h"

namespace bulkhead {
namespace {

// What a message is made of, beside the connection.
using Nothing = char;

std::pair<OwnFd, OwnFd> MakeSockets(int type) {
  int ends[2];
  // Neither end may have a call left that makes it so.
  if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) ThrowErrno("create a socket pair");
  return {OwnFd(ends[0]), OwnFd(ends[1])};
}

}  // namespace

std::pair<OwnFd, OwnFd> MakeSpareSockets() {
  auto ends = MakeSockets(SOCK_SEQPACKET);
  ::shutdown(ends.first.get(), SHUT_RD);
  return ends;
}

Result<OwnFd> SendConnection(const OwnFd& spare) {
  auto [ours, theirs] = MakeSockets(SOCK_STREAM);
  const Nothing nothing{};
  // A child that takes none is not waited for.
  auto sent = SendMessage(spare, &nothing, sizeof nothing, {theirs.get()});
  if (!sent.ok()) return sent.error();
  return std::move(ours);
}

BrokerLink::BrokerLink(kj::AsyncIoContext& io)
    : io_(io),
      spare_(kSpareFd),
      spare_observer_(io.unixEventPort, kSpareFd, kj::UnixEventPort::FdObserver::OBSERVE_READ),
      connection_(std::in_place, *io.lowLevelProvider, OwnFd(kControlFd)) {}

void BrokerLink::Tell(Call call) {
  tasks_.add(kj::evalNow([&] { return call(); }).catch_([this, call, asked = brokers_](kj::Exception&& error) {
    if (error.getType() != kj::Exception::Type::DISCONNECTED) return;
    // The next broker may be there by the time that this is known of the last.
    if (asked != brokers_) return Tell(call);
    unanswered_.push_back(call);
  }));
}

kj::Promise<OwnFd> BrokerLink::NextConnection() {
  Nothing nothing;
  std::vector<OwnFd> fds;
  auto received = ReceiveMessage(spare_, &nothing, sizeof nothing, fds);
  if (received.ok() && fds.size() == 1) return std::move(fds[0]);
  if (received.ok() || received.error().code != EAGAIN) return OwnFd();
  return spare_observer_.whenBecomesReadable().then([this] { return NextConnection(); });
}

void BrokerLink::Serve(const Call& go_on) {
  for (;;) {
    connection_->OnDisconnect().wait(io_.waitScope);
    OwnFd next = NextConnection().wait(io_.waitScope);
    if (!next.valid()) return;
    connection_.emplace(*io_.lowLevelProvider, std::move(next), SocketMode::kNonBlocking);
    ++brokers_;
    Tell(go_on);
    for (const Call& call : std::exchange(unanswered_, {})) Tell(call);
  }
}

}  // namespace bulkhead
