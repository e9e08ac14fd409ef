// SPDX-License-Identifier: Apache-2.0
#include "ipc/pulse_line.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace bulkhead {
namespace {

// There is one answer to a question. A line holds fewer than this, and who goes on sending is not listened to for
// longer.
constexpr int kMostAtOnce = 1024;

// Takes one message of up to so many bytes, without waiting: the flags of the socket may be the other holder's work.
ssize_t Take(int end, void* message, size_t bytes) {
  iovec part{message, bytes};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  return ::recvmsg(end, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
}

}  // namespace

PulseLine PulseLine::Make() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
    ThrowErrno("make a pair of sockets");
  }
  return {.asking = OwnFd(ends[0]), .answering = OwnFd(ends[1])};
}

bool PulseLine::Ask() const {
  char question = 0;
  iovec part{&question, sizeof question};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  // One that finds the line full is as good as asked: there are others.
  return ::sendmsg(asking.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || errno == EAGAIN;
}

std::optional<uint32_t> PulseLine::TakeAnswer() const {
  std::optional<uint32_t> last;
  bool ended = false;
  for (int i = 0; i < kMostAtOnce; ++i) {
    uint32_t open = 0;
    const ssize_t size = Take(asking.get(), &open, sizeof open);
    if (size < 0) break;
    if (size == sizeof open) last = open;
    // The end of the line, or an empty message with others behind it: the same call says both.
    ended = ended || size == 0;
  }
  if (!last && ended) return 0;
  return last;
}

void AnswerPulse(const OwnFd& answering, uint32_t open) {
  char question = 0;
  for (int i = 0; i < kMostAtOnce && Take(answering.get(), &question, sizeof question) > 0; ++i) {
  }
  (void)!::write(answering.get(), &open, sizeof open);
}

}  // namespace bulkhead
