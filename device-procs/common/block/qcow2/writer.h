// SPDX-License-Identifier: Apache-2.0
// Changes of a qcow2 disk: data, zeroes, discards. What has a cluster of its own is written where it is; the rest gets
// new clusters, filled up from what was there, and enters the tables when its data are written. Image's thread; offsets
// and sizes are checked, the memory is the guest's.
#pragma once

#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/checkpoint.h"
#include "device-procs/common/block/qcow2/image_state.h"
#include "device-procs/common/block/qcow2/locks.h"
#include "device-procs/common/block/qcow2/mapping.h"
#include "device-procs/common/block/qcow2/reader.h"
#include "device-procs/common/block/qcow2/refcounts.h"

namespace bulkhead::qcow2 {

class Writer {
 public:
  Writer(ImageState& state, Mapping& mapping, Refcounts& refcounts, Reader& reader, Backing backing)
      : state_(state), mapping_(mapping), refcounts_(refcounts), reader_(reader), has_backing_(backing.channel) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  device::Task<Result<void>> Write(uint64_t offset, std::vector<iovec> from);
  // Reads as zeroes afterwards. With `unmap` its clusters are given back.
  device::Task<Result<void>> WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap);
  // Gives back the whole clusters of the range, where that can be told from what a backing file has.
  device::Task<Result<void>> Discard(uint64_t offset, uint64_t size_bytes);
  // Clusters that nothing was written to read as zeroes, whatever a backing file has there. Version 3.
  device::Task<Result<void>> HideBacking(uint64_t first_cluster, uint64_t count);
  // A whole cluster that is not allocated, from data that were packed; `packed` is in whole sectors.
  device::Task<Result<void>> WriteCompressed(uint64_t offset, const Buffer& packed, size_t size_bytes);

  // Whether this may be written where it is; an error if it is where tables are, or past the end of the file.
  Result<bool> MayWriteInPlace(const Extent& extent);

 private:
  Result<void> CheckPlace(uint64_t file_offset, uint64_t size_bytes);
  device::Task<Result<uint64_t>> WriteSome(uint64_t offset, const std::vector<iovec>& from, uint64_t skipped);
  device::Task<int> ReserveFile(Allocation place);
  device::Task<Result<void>> WriteInPlace(uint64_t file_offset, std::vector<iovec> from);
  device::Task<Result<void>> WriteAllocating(uint64_t offset, std::vector<iovec> from);
  device::Task<Result<uint64_t>> AllocateAndWrite(uint64_t offset, const std::vector<iovec>& from, uint64_t skipped,
                                                  Extent extent);
  device::Task<Result<void>> WriteClusters(uint64_t offset, std::vector<iovec> from, Extent old, Allocation place);
  device::Task<Result<void>> Enter(uint64_t first_cluster, Allocation place);
  device::Task<Result<void>> ZeroPart(uint64_t offset, uint64_t size_bytes);
  device::Task<Result<void>> ZeroWhole(uint64_t first_cluster, uint64_t count, bool unmap);
  uint64_t ZeroEntry(uint64_t old, bool unmap) const;

  ImageState& state_;
  Mapping& mapping_;
  Refcounts& refcounts_;
  Reader& reader_;
  const bool has_backing_;
  RangeLocks clusters_;  // of the disk, that get other clusters of the file
  BufferBudget budget_{size_t{16} << 20};
  Buffer zeroes_;  // made when it is first needed
  // The file has room up to here, or somebody is just making it.
  uint64_t reserved_end_ = 0;
  bool reserving_ = false;
  device::WaitList reserved_;
  // Where the next packed cluster goes.
  uint64_t packed_at_ = 0;
  uint64_t packed_end_ = 0;
};

}  // namespace bulkhead::qcow2
