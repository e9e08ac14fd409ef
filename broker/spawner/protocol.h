// SPDX-License-Identifier: Apache-2.0
// What the broker asks of its spawner and is answered: one packet each, with up to three descriptors. The spawner takes
// the broker for locked down and maybe owned: all that it can be made to do then is to start again, in the place that
// it was told of before, what it was told of before. Broker and spawner, main thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead::broker {

// Where the spawner finds its connection.
inline constexpr int kSpawnerFd = 3;
// Of one broker's devices.
inline constexpr uint32_t kMaxPrograms = 512;

struct SpawnerRequest {
  enum Kind : uint32_t {
    kEnroll,    // a program and its place, with the next number; with the directory of its cgroup. Not answered
    kSeal,      // from now on no more are enrolled. Not answered
    kSpawn,     // starts it; answered with pid, pidfd, connection and log
    kRenew,     // the same with what is installed under its name now
    kKeep,      // from now on the number stands for what was started so last; answered with nothing
    kListener,  // with a child's pidfd: takes its system call filter's listener, of number `number` in the child
  };
  Kind kind = kSpawn;
  uint32_t number = 0;
  uint32_t uid = 0;
  bool has_uid = false;
  bool keeps_network = false;
  std::array<char, 128> title{};
  std::array<char, 4096> executable{};
};

struct SpawnerReply {
  int32_t pid = 0;
  int32_t code = 0;  // 0, or the errno of what failed
  std::array<char, 512> message{};
};

// Text in a fixed field, cut where it is too long; always ends with a zero byte.
template <size_t N>
void PutText(std::array<char, N>& field, const std::string& text) {
  field = {};
  text.copy(field.data(), N - 1);
}
template <size_t N>
std::string GetText(std::array<char, N> field) {
  field.back() = 0;
  return field.data();
}

// One packet; EPIPE where the other end is gone, EAGAIN where a non-blocking socket has none.
Result<void> SendPacket(const OwnFd& socket, const void* packet, size_t bytes, const std::vector<int>& fds);
Result<void> ReceivePacket(const OwnFd& socket, void* packet, size_t bytes, std::vector<OwnFd>& fds);

}  // namespace bulkhead::broker
