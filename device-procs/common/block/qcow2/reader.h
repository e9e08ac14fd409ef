// SPDX-License-Identifier: Apache-2.0
// Reads of a qcow2 disk: each piece from where it is, all pieces at the same time. Image's thread; offsets and sizes
// are checked, the memory is the guest's.
#pragma once

#include <array>
#include <set>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/image_state.h"
#include "device-procs/common/block/qcow2/mapping.h"
#include "device-procs/common/block/qcow2/packing.h"

namespace bulkhead::qcow2 {

// What lies below an image.
struct Backing {
  device::BlockChannel* channel = nullptr;  // null: nothing, so zeroes
  uint64_t size_bytes = 0;                  // zeroes follow
};

class Reader {
 public:
  Reader(ImageState& state, Mapping& mapping, device::Offload& offload, Backing backing)
      : state_(state), mapping_(mapping), backing_(backing), unpacking_(offload) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  device::Task<Result<void>> Read(uint64_t offset, std::vector<iovec> to);
  // One compressed cluster, from its entry: `to` takes what begins at `in_cluster`.
  device::Task<Result<void>> ReadCompressed(uint64_t entry, uint64_t in_cluster, std::vector<iovec> to);
  // No unpacked cluster is remembered any more: what was compressed may be something else now.
  void Forget();

 private:
  struct Unpacked {
    uint64_t entry = 0;
    uint64_t used = 0;
    Buffer bytes;
  };
  // Of a cluster that is being unpacked: who needs it as well waits for that.
  class UnderWay {
   public:
    UnderWay(Reader& reader, uint64_t entry) : reader_(reader), entry_(entry) { reader.under_way_.insert(entry); }
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;
    ~UnderWay() {
      reader_.under_way_.erase(entry_);
      reader_.unpacked_one_.WakeAll();
    }

   private:
    Reader& reader_;
    const uint64_t entry_;
  };

  device::Task<Result<uint64_t>> ReadSome(uint64_t offset, const std::vector<iovec>& to, uint64_t skipped);
  device::Task<Result<void>> ReadData(uint64_t file_offset, std::vector<iovec> to);
  device::Task<Result<void>> ReadBacking(uint64_t offset, std::vector<iovec> to);
  Unpacked* Remembered(uint64_t entry);

  ImageState& state_;
  Mapping& mapping_;
  const Backing backing_;
  Unpacking unpacking_;
  BufferBudget budget_{size_t{8} << 20};
  // Small sequential reads unpack a cluster once.
  std::array<Unpacked, 4> unpacked_;
  uint64_t uses_ = 0;
  uint64_t generation_ = 0;
  std::set<uint64_t> under_way_;
  device::WaitList unpacked_one_;
};

}  // namespace bulkhead::qcow2
