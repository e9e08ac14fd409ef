// SPDX-License-Identifier: Apache-2.0
// OwnFd: the one owner of a file descriptor, from the moment it exists. Any process, any thread.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "ipc/result.h"

namespace bulkhead {

class OwnFd {
 public:
  OwnFd() = default;
  explicit OwnFd(int fd) : fd_(fd) {}
  OwnFd(OwnFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnFd& operator=(OwnFd&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  OwnFd(const OwnFd&) = delete;
  OwnFd& operator=(const OwnFd&) = delete;
  ~OwnFd() { Close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

// A close-on-exec duplicate.
Result<OwnFd> DuplicateFd(int fd);

// A non-blocking, close-on-exec eventfd with count 0.
Result<OwnFd> MakeEventFd();

// Adds 1 to an eventfd. A full counter (EAGAIN) already means "signalled" and is no error.
void SignalEventFd(int fd);

// Takes an eventfd's count, 0 if it was not signalled.
uint64_t DrainEventFd(int fd);

// A sealed memfd of exactly `size_bytes` (page aligned by the caller): it can neither grow nor shrink, nor be
// sealed further. `name` appears in /proc/PID/maps.
Result<OwnFd> MakeSealedMemory(const std::string& name, uint64_t size_bytes);

}  // namespace bulkhead
