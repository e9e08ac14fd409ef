// SPDX-License-Identifier: Apache-2.0
#include "ipc/pulse_line.h"

#include <sys/socket.h>
#include <unistd.h>

namespace bulkhead {
namespace {

// There is one answer to a question, as a rule; who sends more is not listened to for longer.
constexpr int kMostAtOnce = 16;

}  // namespace

PulseLine PulseLine::Make() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
    ThrowErrno("make a pair of sockets");
  }
  return {.asking = OwnFd(ends[0]), .answering = OwnFd(ends[1])};
}

void PulseLine::Ask() const {
  char question = 0;
  iovec part{&question, sizeof question};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  (void)!::sendmsg(asking.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

std::optional<uint32_t> PulseLine::TakeAnswer() const {
  std::optional<uint32_t> last;
  for (int i = 0; i < kMostAtOnce; ++i) {
    uint32_t open = 0;
    iovec part{&open, sizeof open};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    const ssize_t size = ::recvmsg(asking.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) break;
    if (size == sizeof open) last = open;
  }
  return last;
}

void AnswerPulse(const OwnFd& answering, uint32_t open) {
  char question = 0;
  for (int i = 0; i<kMostAtOnce&& ::read(answering.get(), &question, sizeof question)> 0; ++i) {
  }
  (void)!::write(answering.get(), &open, sizeof open);
}

}  // namespace bulkhead
