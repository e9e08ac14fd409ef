// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/joined_disks.h"

#include <algorithm>
#include <cstring>

#include "device-procs/img/jobs.h"
#include "device-procs/img/parts.h"

namespace bulkhead::img {

using device::BlockExtent;
using device::Task;

JoinedDisks::JoinedDisks(std::vector<OpenImage*> images) {
  for (OpenImage* image : images) disks_.push_back({.image = image});
}

Task<Result<void>> JoinedDisks::Open() {
  for (Disk& disk : disks_) {
    Result<void> opened = co_await img::Open(*disk.image);
    if (!opened.ok()) co_return opened;
    const uint64_t disk_bytes = disk.image->chain->geometry().size_bytes;
    if (disk_bytes > INT64_MAX - size_bytes_) co_return Error{EFBIG, "together the disks are larger than any can be"};
    size_bytes_ += disk_bytes;
    disk.end = size_bytes_;
  }
  co_return Result<void>();
}

Task<Result<void>> JoinedDisks::Read(uint64_t offset, std::byte* to, uint64_t size_bytes) {
  while (size_bytes != 0 && offset < size_bytes_) {
    uint64_t begin = 0;
    const size_t disk = DiskAt(offset, begin);
    const uint64_t step = std::min(size_bytes, disks_[disk].end - offset);
    Result<void> read = co_await ReadPart(*disks_[disk].image, offset - begin, to, step);
    if (!read.ok()) co_return Named(disk, read.error());
    offset += step;
    to += step;
    size_bytes -= step;
  }
  std::memset(to, 0, size_bytes);
  co_return Result<void>();
}

Task<Result<BlockExtent>> JoinedDisks::Map(uint64_t offset) {
  uint64_t begin = 0;
  const size_t disk = DiskAt(offset, begin);
  Result<BlockExtent> extent = co_await disks_[disk].image->channel->Map(offset - begin, disks_[disk].end - offset);
  if (!extent.ok()) co_return Named(disk, extent.error());
  co_return extent;
}

size_t JoinedDisks::DiskAt(uint64_t offset, uint64_t& begin) const {
  const auto found = std::upper_bound(disks_.begin(), disks_.end(), offset,
                                      [](uint64_t at, const Disk& disk) { return at < disk.end; });
  begin = found == disks_.begin() ? 0 : std::prev(found)->end;
  return static_cast<size_t>(found - disks_.begin());
}

Error JoinedDisks::Named(size_t disk, Error error) const {
  if (disks_.size() > 1) error.message = "source " + std::to_string(disk + 1) + ": " + error.message;
  return error;
}

}  // namespace bulkhead::img
