// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/slirp/socket_calls.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace bulkhead::usernet {
namespace {

// Of one forwarded port. Whoever is forgotten is heard again with the next datagram.
constexpr size_t kMaxPeers = 64;

SocketCalls* calls = nullptr;

template <typename... Args>
long Call(long number, Args... args) {
  return ::syscall(number, args...);
}

long Fail(int error) {
  errno = error;
  return -1;
}

// The guest gets a reset, at once. Of any other error the library makes a message of ICMP, and version 4.7 does not
// survive that where it has not yet met the guest's IPv6 address.
int Refuse() { return static_cast<int>(Fail(ECONNREFUSED)); }
int Connected(long result) { return result == 0 || errno == EINPROGRESS ? static_cast<int>(result) : Refuse(); }

std::string ResolverLine(int family, capnp::Data::Reader address) {
  char text[INET6_ADDRSTRLEN];
  if (address.size() == 0 || ::inet_ntop(family, address.begin(), text, sizeof text) == nullptr) return "";
  return std::string("nameserver ") + text + "\n";
}

}  // namespace

SocketCalls::SocketCalls(Egress egress, control::UserNet::Reader settings)
    : egress_(std::move(egress)),
      resolvers_(ResolverLine(AF_INET, settings.getDns4()) + ResolverLine(AF_INET6, settings.getDns6())) {
  calls = this;
}

SocketCalls::~SocketCalls() { calls = nullptr; }

int SocketCalls::Socket(int family, int type, int protocol) const {
  if (adopted_) return *adopted_;
  type &= ~SOCK_CLOEXEC;
  // The library tries a raw socket where there is none for ping. The filter would end the process.
  const bool known = (family == AF_INET || family == AF_INET6) && (type == SOCK_STREAM || type == SOCK_DGRAM);
  const bool ping = family == AF_INET && type == SOCK_DGRAM && protocol == IPPROTO_ICMP;
  if (!known || (protocol != 0 && !ping)) return static_cast<int>(Fail(EACCES));
  return static_cast<int>(Call(SYS_socket, long{family}, long{type | SOCK_CLOEXEC}, long{protocol}));
}

int SocketCalls::Connect(int fd, const sockaddr* address, socklen_t bytes) const {
  const auto to = EndpointOf(address, bytes);
  const auto route = to ? egress_.RouteConnection(*to) : std::nullopt;
  if (!route) return Refuse();
  if (*route == *to) return Connected(Call(SYS_connect, fd, address, bytes));
  // A forward, of IPv4.
  sockaddr_in target{};
  target.sin_family = AF_INET;
  target.sin_port = htons(route->port);
  std::memcpy(&target.sin_addr, route->address.data() + route->address.size() - sizeof target.sin_addr,
              sizeof target.sin_addr);
  return Connected(Call(SYS_connect, fd, &target, sizeof target));
}

ssize_t SocketCalls::SendTo(int fd, const void* data, size_t size, int flags, const sockaddr* address,
                            socklen_t bytes) const {
  if (address != nullptr) {
    const auto to = EndpointOf(address, bytes);
    const auto heard = peers_.find(fd);
    const bool answers = to && heard != peers_.end() && std::ranges::find(heard->second, *to) != heard->second.end();
    const bool goes = answers || (to && egress_.AllowsDatagram(*to));
    if (goes) Call(SYS_sendto, fd, data, size, flags | MSG_NOSIGNAL, address, bytes);
    // One that does not is lost, as on any wire: see Refuse.
    return static_cast<ssize_t>(size);
  }
  return Call(SYS_sendto, fd, data, size, flags | MSG_NOSIGNAL, address, bytes);
}

ssize_t SocketCalls::ReceiveFrom(int fd, void* data, size_t size, int flags, sockaddr* address, socklen_t* bytes) {
  const ssize_t received = Call(SYS_recvfrom, fd, data, size, flags, address, bytes);
  const auto heard = peers_.find(fd);
  if (received < 0 || heard == peers_.end() || bytes == nullptr) return received;
  std::deque<Endpoint>& peers = heard->second;
  if (const auto from = EndpointOf(address, *bytes); from && std::ranges::find(peers, *from) == peers.end()) {
    if (peers.size() == kMaxPeers) peers.pop_front();
    peers.push_back(*from);
  }
  return received;
}

int SocketCalls::Accept(int fd, sockaddr* address, socklen_t* bytes) {
  const auto accepted = static_cast<int>(Call(SYS_accept4, fd, address, bytes, SOCK_CLOEXEC));
  if (accepted < 0 && (errno == EMFILE || errno == ENFILE)) out_of_descriptors_ = true;
  return accepted;
}

int SocketCalls::SetOption(int fd, int level, int option, const void* value, socklen_t bytes) const {
  // What cannot be changed of a socket that is bound is as it has to be.
  if (IsAdopted(fd)) return 0;
  // See Refuse.
  if (level == IPPROTO_IPV6 && option == IPV6_RECVERR) return 0;
  return static_cast<int>(Call(SYS_setsockopt, fd, level, option, value, bytes));
}

}  // namespace bulkhead::usernet

// Nothing but the library calls these here: what else the process does needs no sockets of its own.
using bulkhead::usernet::calls;

extern "C" {

int socket(int family, int type, int protocol) noexcept { return calls->Socket(family, type, protocol); }
int bind(int fd, const sockaddr*, socklen_t) noexcept {
  return calls->IsAdopted(fd) ? 0 : static_cast<int>(bulkhead::usernet::Fail(EACCES));
}
int listen(int fd, int) noexcept {
  return calls->IsAdopted(fd) ? 0 : static_cast<int>(bulkhead::usernet::Fail(EACCES));
}
int connect(int fd, const sockaddr* address, socklen_t bytes) { return calls->Connect(fd, address, bytes); }
int accept(int fd, sockaddr* address, socklen_t* bytes) { return calls->Accept(fd, address, bytes); }
ssize_t sendto(int fd, const void* data, size_t size, int flags, const sockaddr* address, socklen_t bytes) {
  return calls->SendTo(fd, data, size, flags, address, bytes);
}
ssize_t recvfrom(int fd, void* data, size_t size, int flags, sockaddr* address, socklen_t* bytes) {
  return calls->ReceiveFrom(fd, data, size, flags, address, bytes);
}
int setsockopt(int fd, int level, int option, const void* value, socklen_t bytes) noexcept {
  return calls->SetOption(fd, level, option, value, bytes);
}

// The library looks for the host's resolvers in a file that this process does not see. It is the only file it ever
// needs, and never changes.
FILE* fopen64(const char* path, const char*) {
  const bool resolvers = std::strcmp(path, "/etc/resolv.conf") == 0 && calls != nullptr && !calls->resolvers().empty();
  if (!resolvers) return static_cast<FILE*>(nullptr);
  const std::string& text = calls->resolvers();
  return ::fmemopen(const_cast<char*>(text.data()), text.size(), "r");
}
int stat64(const char*, struct stat64* status) noexcept {
  *status = {};
  return 0;
}

}  // extern "C"
