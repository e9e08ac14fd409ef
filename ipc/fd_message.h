// SPDX-License-Identifier: Apache-2.0
// One message of a fixed size, with descriptors, over a SOCK_SEQPACKET socket. Any process, any thread. What is
// received is its sender's word.
#pragma once

#include <cstddef>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead {

// The kernel's SCM_MAX_FD.
inline constexpr size_t kMaxFdsInMessage = 253;

// EPIPE where the other end is gone, EAGAIN where a non-blocking socket has no room.
Result<void> SendMessage(const OwnFd& socket, const void* message, size_t bytes, const std::vector<int>& fds);
// EPIPE where the other end is gone, EAGAIN where a non-blocking socket has none, EPROTO for one of another size.
Result<void> ReceiveMessage(const OwnFd& socket, void* message, size_t bytes, std::vector<OwnFd>& fds);

}  // namespace bulkhead
