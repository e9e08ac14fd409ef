// SPDX-License-Identifier: Apache-2.0
// For fuzz targets: the far end of one of the broker's connections, which sends any bytes and any descriptors, and the
// event loop in which the broker's end runs. One thread.
#pragma once

#include <fcntl.h>
#include <kj/async-io.h>
#include <kj/debug.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "ipc/fd.h"
#include "ipc/fuzz_input.h"
#include "ipc/rpc.h"

namespace bulkhead::fuzz {

inline kj::AsyncIoContext& Loop() {
  static kj::AsyncIoContext io = kj::setupAsyncIo();
  return io;
}

// Runs until nothing is left to do.
inline void Settle() { Loop().waitScope.poll(); }

class HostilePeer {
 public:
  explicit HostilePeer(OwnFd socket) : socket_(std::move(socket)) {
    ::fcntl(socket_.get(), F_SETFL, ::fcntl(socket_.get(), F_GETFL) | O_NONBLOCK);
  }

  bool connected() const { return socket_.valid(); }

  // One piece of the stream, with up to four descriptors.
  void Send(std::span<const std::byte> bytes, unsigned descriptors) {
    if (!connected() || bytes.empty()) return;
    iovec piece{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxDescriptors * sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    descriptors %= kMaxDescriptors + 1;
    if (descriptors != 0) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(descriptors * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(descriptors * sizeof(int));
      for (unsigned i = 0; i < descriptors; ++i) {
        const int fd = socket_.get();
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof fd);
      }
    }
    (void)!::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    Settle();
    Discard();
  }

  // Reads what came, so that the broker's end is never held up.
  void Discard() {
    std::array<char, 65536> bytes;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFdsPerMessage * sizeof(int))> control;
    while (connected()) {
      iovec piece{.iov_base = bytes.data(), .iov_len = bytes.size()};
      msghdr message{};
      message.msg_iov = &piece;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      if (::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC) <= 0) return;
      for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
        const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
          int fd;
          std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
          ::close(fd);
        }
      }
    }
  }

  void HangUp() {
    socket_.Close();
    Settle();
  }

 private:
  static constexpr unsigned kMaxDescriptors = 4;

  OwnFd socket_;
};

}  // namespace bulkhead::fuzz
