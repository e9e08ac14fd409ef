// SPDX-License-Identifier: Apache-2.0
// What the broker asks of its spawner and is answered: one message each, with descriptors (ipc/fd_message.h). The
// spawner takes the broker for locked down and maybe owned: all that it can be made to do then is to start again, in
// the place that it was told of before, what it was told of before, and to keep descriptors. Broker and spawner, main
// thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace bulkhead::broker {

// Where the spawner finds its connection.
inline constexpr int kSpawnerFd = 3;
// Of one VM's processes.
inline constexpr uint32_t kMaxPrograms = 512;
// That descriptors are kept under.
inline constexpr size_t kMaxKeys = 2048;

struct SpawnerRequest {
  enum Kind : uint32_t {
    kEnroll,    // a program and its place, with the next number; with the directory of its cgroup. Not answered
    kSeal,      // from now on no more are enrolled. Not answered
    kSpawn,     // starts it; answered with pid, pidfd, connection and log
    kRenew,     // the same with what is installed under its name now
    kKeep,      // from now on the number stands for what was started so last; answered with nothing
    kListener,  // answered with its process's system call filter's listener, of number `listener` in it
    kAdopt,     // a new connection to its process; answered as kSpawn is, and with the listener if that was taken
    kReap,      // answered with how its process ended; EAGAIN: it has not
    kChanges,   // answered with an eventfd that tells when a process has ended or was stopped
    kStopped,   // answered with the number of one that a signal has stopped since the last time, as pid; -1: none
    kStore,     // keeps the descriptors under that number instead of those before; answered with nothing
    kFetch,     // answered with these
    kSettle,    // the VM runs. Not answered
  };
  Kind kind = kSpawn;
  uint32_t number = 0;
  int32_t listener = -1;
  uint64_t id =
      0;  // of the question, which its answer has too: one that a broker asked before it died is answered to the next
  uint32_t uid = 0;
  bool has_uid = false;
  bool keeps_network = false;
  std::array<char, 128> title{};
  std::array<char, 4096> executable{};
};

struct SpawnerReply {
  uint64_t id = 0;
  int32_t pid = 0;
  int32_t code = 0;      // 0, or the errno of what failed
  int32_t end_code = 0;  // siginfo_t's, of one that has ended
  int32_t end_status = 0;
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

}  // namespace bulkhead::broker
