// SPDX-License-Identifier: Apache-2.0
// A disk in a qcow file of version 1 (QEMU, block/qcow.c), reading only: such images exist, new ones should not. One
// channel over the channel of the file; the file is hostile and is opened after lock-down. The thread of the channel.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/packing.h"
#include "device-procs/common/block/qcow2/reader.h"
#include "device-procs/common/block/qcow2/table_cache.h"
#include "device-procs/common/block/work_limit.h"

namespace bulkhead::qcow1 {

struct Header {
  uint64_t size_bytes = 0;  // of the disk
  uint32_t cluster_bits = 0;
  uint32_t l2_bits = 0;
  uint64_t l1_offset = 0;
  uint64_t l1_entries = 0;
  uint64_t backing_offset = 0;  // of the name; 0: none
  uint32_t backing_bytes = 0;
};

// Whether these bytes begin like a qcow file of version 1.
bool LooksLikeQcow1(std::span<const std::byte> bytes);
// `bytes` is the file from its start, 512 of them at least.
Result<Header> ParseHeader(std::span<const std::byte> bytes);

class Qcow1Channel final : public device::BlockChannel {
 public:
  // The file's channel reads zeroes past the end. It, what unpacks and what lies below outlive this.
  Qcow1Channel(device::BlockChannel& file, const device::BlockGeometry& file_geometry, device::Offload& offload,
               qcow2::Backing backing);
  ~Qcow1Channel() override;

  device::Task<Result<void>> Open() override;
  void Read(uint64_t offset, std::span<const iovec> to, device::BlockCompletion& done) override;
  device::Task<Result<device::BlockExtent>> Map(uint64_t offset, uint64_t size_bytes) override;
  void Flush(device::BlockCompletion& done) override { done.Completed(0); }
  // It cannot be written: EROFS.
  void Write(uint64_t offset, std::span<const iovec> from, device::BlockCompletion& done) override;
  void Discard(uint64_t offset, uint64_t size_bytes, device::BlockCompletion& done) override;
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, device::BlockCompletion& done) override;

  const Header& header() const { return header_; }
  const std::string& backing_file() const { return backing_file_; }  // as written; empty: none
  device::WorkLimit& work() { return work_; }                        // of those who map all of it

 private:
  struct Extent;
  struct Unpacked {
    uint64_t entry = 0;
    qcow2::Buffer bytes;
  };

  device::Task<Result<void>> ReadL1();
  device::Task<Result<void>> ReadBackingName();
  device::Task<Result<Extent>> Find(uint64_t offset, uint64_t size_bytes);
  Result<Extent> Decode(uint64_t entry) const;
  device::Task<Result<void>> ReadAll(uint64_t offset, std::vector<iovec> to);
  device::Task<Result<void>> ReadPiece(uint64_t offset, Extent extent, std::vector<iovec> to);
  device::Task<Result<void>> ReadCompressed(uint64_t in_cluster, Extent extent, std::vector<iovec> to);
  device::Spawned Run(device::Task<Result<void>> work, device::BlockCompletion& done);
  uint64_t cluster_bytes() const { return uint64_t{1} << header_.cluster_bits; }

  device::BlockChannel& file_;
  const uint64_t file_end_;
  const qcow2::Backing backing_;
  device::WorkLimit work_;
  Header header_;
  std::string backing_file_;
  std::vector<uint64_t> l1_;  // aligned to sectors, in the file
  std::unique_ptr<qcow2::TableCache> cache_;
  qcow2::Unpacking unpacking_;
  qcow2::BufferBudget budget_{size_t{4} << 20};
  Unpacked unpacked_;  // small sequential reads unpack a cluster once
  size_t running_ = 0;
  device::WaitList may_run_;
};

}  // namespace bulkhead::qcow1
