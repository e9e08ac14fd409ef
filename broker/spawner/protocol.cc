// SPDX-License-Identifier: Apache-2.0
#include "broker/spawner/protocol.h"

#include <sys/socket.h>

#include <cstring>

namespace bulkhead::broker {
namespace {

constexpr size_t kMaxFds = 3;

}  // namespace

Result<void> SendPacket(const OwnFd& socket, const void* packet, size_t bytes, const std::vector<int>& fds) {
  iovec piece{.iov_base = const_cast<void*>(packet), .iov_len = bytes};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    const size_t fd_bytes = fds.size() * sizeof(int);
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fd_bytes);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fd_bytes);
    std::memcpy(CMSG_DATA(header), fds.data(), fd_bytes);
  }
  if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) {
    return ErrnoError(errno, "send to the other end of the spawner");
  }
  return {};
}

Result<void> ReceivePacket(const OwnFd& socket, void* packet, size_t bytes, std::vector<OwnFd>& fds) {
  iovec piece{.iov_base = packet, .iov_len = bytes};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got;
  do {
    got = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ErrnoError(errno, "receive from the other end of the spawner");
  fds.clear();
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  if (got == 0) return Error{EPIPE, "the other end of the spawner is gone"};
  if (static_cast<size_t>(got) != bytes) return Error{EPROTO, "a packet of the spawner has another size"};
  return {};
}

}  // namespace bulkhead::broker
