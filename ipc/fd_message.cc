// SPDX-License-Identifier: Apache-2.0
#include "ipc/fd_message.h"

#include <sys/socket.h>

#include <array>
#include <cstring>

namespace bulkhead {

Result<void> SendMessage(const OwnFd& socket, const void* message, size_t bytes, const std::vector<int>& fds) {
  iovec piece{.iov_base = const_cast<void*>(message), .iov_len = bytes};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFdsInMessage * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  if (fds.size() > kMaxFdsInMessage) return Error{E2BIG, "a message carries no more descriptors than 253"};
  if (!fds.empty()) {
    const size_t fd_bytes = fds.size() * sizeof(int);
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(fd_bytes);
    cmsghdr* carried = CMSG_FIRSTHDR(&header);
    carried->cmsg_level = SOL_SOCKET;
    carried->cmsg_type = SCM_RIGHTS;
    carried->cmsg_len = CMSG_LEN(fd_bytes);
    std::memcpy(CMSG_DATA(carried), fds.data(), fd_bytes);
  }
  if (::sendmsg(socket.get(), &header, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) {
    return ErrnoError(errno, "send a message with descriptors");
  }
  return {};
}

Result<void> ReceiveMessage(const OwnFd& socket, void* message, size_t bytes, std::vector<OwnFd>& fds) {
  iovec piece{.iov_base = message, .iov_len = bytes};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFdsInMessage * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got;
  do {
    got = ::recvmsg(socket.get(), &header, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ErrnoError(errno, "receive a message with descriptors");
  fds.clear();
  for (cmsghdr* carried = CMSG_FIRSTHDR(&header); carried != nullptr; carried = CMSG_NXTHDR(&header, carried)) {
    if (carried->cmsg_level != SOL_SOCKET || carried->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (carried->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(carried) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  if (got == 0) return Error{EPIPE, "the other end of the socket is gone"};
  if (static_cast<size_t>(got) != bytes) return Error{EPROTO, "a message with descriptors has another size"};
  return {};
}

}  // namespace bulkhead
