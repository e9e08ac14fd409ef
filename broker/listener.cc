// SPDX-License-Identifier: Apache-2.0
#include "broker/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace bulkhead::broker {
namespace {

bool MayConnect(int connection, uid_t own) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == 0 || peer.uid == own;
}

}  // namespace

Listener::Listener(kj::UnixEventPort& port, OwnFd socket, std::function<void(OwnFd)> accepted)
    : socket_(std::move(socket)),
      observer_(port, socket_.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ),
      accepted_(std::move(accepted)),
      own_uid_(::geteuid()),
      task_(nullptr) {
  // A peer that hangs up between readiness and accept must not block the broker.
  ::fcntl(socket_.get(), F_SETFL, ::fcntl(socket_.get(), F_GETFL) | O_NONBLOCK);
}

kj::Promise<void> Listener::Accept() {
  OwnFd connection(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection.valid() && errno == EAGAIN) {
    return observer_.whenBecomesReadable().then([this] { return Accept(); });
  }
  if (connection.valid() && MayConnect(connection.get(), own_uid_)) accepted_(std::move(connection));
  return kj::evalLater([this] { return Accept(); });
}

}  // namespace bulkhead::broker
