// SPDX-License-Identifier: Apache-2.0
// Disks one behind the other, read as one. Worker thread; what is in them is hostile, their sizes included.
#pragma once

#include <vector>

#include "device-procs/img/worker_thread.h"

namespace bulkhead::img {

class JoinedDisks final {
 public:
  // The first one first. The images outlive it.
  explicit JoinedDisks(std::vector<OpenImage*> images);

  // Opens them all; the rest only works after it.
  device::Task<Result<void>> Open();
  uint64_t size_bytes() const { return size_bytes_; }

  // What lies past the end reads as zeroes.
  device::Task<Result<void>> Read(uint64_t offset, std::byte* to, uint64_t size_bytes);
  // The extent from `offset`, which is before the end; it ends where its disk does, if not before.
  device::Task<Result<device::BlockExtent>> Map(uint64_t offset);

 private:
  struct Disk {
    OpenImage* image;
    uint64_t end = 0;  // in the whole
  };

  // The disk with this byte; `begin`: of its first one.
  size_t DiskAt(uint64_t offset, uint64_t& begin) const;
  Error Named(size_t disk, Error error) const;

  std::vector<Disk> disks_;
  uint64_t size_bytes_ = 0;
};

}  // namespace bulkhead::img
