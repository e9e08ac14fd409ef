// SPDX-License-Identifier: Apache-2.0
// A disk in a qcow2 file (versions 2 and 3), as one channel over the channel of the file: all its requests run on one
// thread, as many at a time as come. The file is hostile: it is opened after lock-down. What it says wrongly makes
// requests fail and marks it corrupt; it never makes one reach outside of the file.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/checkpoint.h"
#include "device-procs/common/block/qcow2/image_state.h"
#include "device-procs/common/block/qcow2/mapping.h"
#include "device-procs/common/block/qcow2/purpose.h"
#include "device-procs/common/block/qcow2/reader.h"
#include "device-procs/common/block/qcow2/refcounts.h"
#include "device-procs/common/block/qcow2/writer.h"

namespace bulkhead::qcow2 {

struct OpenOptions {
  bool block_device = false;
  Purpose purpose = Purpose::kUse;
  Backing backing;
  // Of an image in use that is written: a successor goes on where this ends. Outlives the channel.
  TableStore* store = nullptr;
  std::function<void(const std::string&)> log;  // what a failed request does not tell
};

class Qcow2Channel final : public device::BlockChannel {
 public:
  // The file's channel reads zeroes past the end. It, what unpacks and what lies below outlive this.
  Qcow2Channel(device::BlockChannel& file, const device::BlockGeometry& file_geometry, device::Offload& offload,
               OpenOptions options);
  ~Qcow2Channel() override;

  device::Task<Result<void>> Open() override;
  void Read(uint64_t offset, std::span<const iovec> to, device::BlockCompletion& done) override;
  void Write(uint64_t offset, std::span<const iovec> from, device::BlockCompletion& done) override;
  void Flush(device::BlockCompletion& done) override;
  void Discard(uint64_t offset, uint64_t size_bytes, device::BlockCompletion& done) override;
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, device::BlockCompletion& done) override;
  device::Task<Result<device::BlockExtent>> Map(uint64_t offset, uint64_t size_bytes) override;
  device::Task<Result<void>> Close() override;

  const Header& header() const { return state_.header; }
  const Backing& backing() const { return options_.backing; }
  // For those who work on the image as a whole while nothing else does.
  ImageState& state() { return state_; }
  Refcounts& refcounts() { return *refcounts_; }
  Checkpointer& checkpointer() { return *checkpointer_; }
  Mapping& mapping() { return *mapping_; }
  Writer& writer() { return *writer_; }
  Reader& reader() { return *reader_; }

 private:
  class Direct;

  device::Task<Result<void>> ReadHeader();
  device::Task<Result<void>> ReadTable(const char* what, uint64_t offset, uint64_t entries, uint64_t reserved,
                                       WholeTable& table);
  // What a predecessor changed and did not come to write.
  Result<void> TakeOverEntries(const std::vector<TableStore::Change>& changes);
  void TakeOverSlices(const std::vector<TableStore::Slot>& slots);
  device::Spawned MakeRoom();
  Result<void> CheckEntry(const char* what, uint64_t index, uint64_t entry, uint64_t reserved) const;
  Result<void> FindTables();
  Result<void> CheckRights() const;
  device::Task<Result<void>> ClearAutoclear();
  uint64_t CacheBytes() const;

  // Runs a request of which only the end is told.
  device::Spawned Run(device::Task<Result<void>> work, device::BlockCompletion& done);
  device::Task<Result<void>> FlushTask();
  Direct& TakeDirect(device::BlockCompletion& done);

  ImageState state_;
  device::Offload& offload_;
  const OpenOptions options_;
  // Made when the header is read.
  std::unique_ptr<Checkpointer> checkpointer_;
  std::unique_ptr<Refcounts> refcounts_;
  std::unique_ptr<Mapping> mapping_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<Writer> writer_;

  size_t running_ = 0;
  device::WaitList may_run_;
  std::vector<std::unique_ptr<Direct>> directs_;
  std::vector<Direct*> free_directs_;
};

}  // namespace bulkhead::qcow2
