// SPDX-License-Identifier: Apache-2.0
// For tests: a file whose every write and flush is remembered, whichever process makes them. It lies on a file system
// of its own, which a thread of the test serves by the kernel's FUSE protocol and which is mounted nowhere, so that
// nothing of it is left when the test ends, however it ends. Requests are carried out out of order, as a disk may.
// Spoken by hand, since Debian 12's libfuse cannot allow writes side by side.
#pragma once

#include <linux/fuse.h>

#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "device-procs/common/block/qcow2/write_log.h"
#include "ipc/fd.h"

namespace bulkhead::test {

class RecordingFile {
 public:
  // Whether this process may mount such a file system.
  static bool IsPossible();

  RecordingFile(std::vector<std::byte> bytes, uint64_t seed);
  ~RecordingFile();

  OwnFd Open(int flags) const;
  // What was finished by a flush since the last time.
  std::vector<device::test::WriteLog::Period> TakePeriods();
  std::vector<std::byte> bytes() const;

 private:
  struct Reply {
    uint64_t unique;
    int error = 0;
    std::vector<std::byte> payload = {};
  };

  void Serve();
  // Takes one request in: answers it, or puts what it asks for with the others that wait.
  void Receive();
  // False: this file system has no such request.
  bool Answer(const fuse_in_header& header, std::span<const std::byte> body);
  void CarryOutOne();
  void Send(const Reply& reply) const;
  int Allocate(const fuse_fallocate_in& asked);
  int Change(uint64_t offset, std::vector<std::byte> written);
  fuse_attr Attributes(uint64_t node) const;

  OwnFd fuse_;
  OwnFd mount_;
  OwnFd stop_;
  mutable std::mutex mutex_;  // of the two below
  std::vector<std::byte> bytes_;
  device::test::WriteLog log_;
  std::mt19937_64 random_;
  std::vector<std::byte> buffer_;
  std::deque<std::function<Reply()>> waiting_;
  std::thread thread_;
};

}  // namespace bulkhead::test
