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
  // What a request fails with, 0: it does not; asked when it is carried out, by the thread that serves the file. A
  // flush has no bytes. And whether writes end early, by chance, at any block. Reads do not: on a regular file the
  // kernel's io_uring continues these itself, Linux 6.18 in the wrong place if the file is a FUSE server's.
  enum class Access : uint8_t { kRead, kChange, kFlush };
  using Fault = std::function<int(Access access, uint64_t offset, uint64_t size_bytes)>;
  void SetFaults(Fault fault, bool ends_early = false);
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
  Reply Read(uint64_t unique, const fuse_read_in& asked);
  Reply Write(uint64_t unique, const fuse_write_in& asked, std::vector<std::byte> written);
  Reply Flush(uint64_t unique, uint64_t promised);
  int Allocate(const fuse_fallocate_in& asked);
  int FaultOf(Access access, uint64_t offset, uint64_t size_bytes) const;
  // How much of a write is carried out.
  uint32_t Part(uint32_t size_bytes);
  int Change(uint64_t offset, std::vector<std::byte> written);
  fuse_attr Attributes(uint64_t node) const;

  OwnFd fuse_;
  OwnFd mount_;
  OwnFd stop_;
  mutable std::mutex mutex_;  // of what follows, as far as the random numbers
  std::vector<std::byte> bytes_;
  device::test::WriteLog log_;
  Fault fault_;
  bool ends_early_ = false;
  std::mt19937_64 random_;
  std::vector<std::byte> buffer_;
  std::deque<std::function<Reply()>> waiting_;
  std::thread thread_;
};

}  // namespace bulkhead::test
