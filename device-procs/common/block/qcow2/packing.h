// SPDX-License-Identifier: Apache-2.0
// Clusters packed and unpacked where others compute, as many at a time as they can. Image's thread. Nobody else touches
// the bytes meanwhile; what is unpacked is the file's: hostile.
#pragma once

#include "device-procs/common/block/offload.h"
#include "device-procs/common/block/qcow2/compression.h"
#include "device-procs/common/block/stock.h"

namespace bulkhead::qcow2 {

class Unpacking {
 public:
  explicit Unpacking(device::Offload& offload) : offload_(offload), unpackers_(offload.width()) {}

  // See Unpacker.
  device::Task<Result<void>> Unpack(Compression kind, std::span<const std::byte> from, std::span<std::byte> to) {
    const device::Stock<Unpacker>::Taken unpacker = co_await unpackers_.Take();
    Result<void> done = co_await device::ComputeOn(offload_, [&] { return unpacker->Unpack(kind, from, to); });
    co_return done;
  }

 private:
  device::Offload& offload_;
  device::Stock<Unpacker> unpackers_;
};

class Packing {
 public:
  Packing(device::Offload& offload, Compression kind) : offload_(offload), packers_(offload.width(), kind) {}

  // See Packer.
  device::Task<Result<size_t>> Pack(std::span<const std::byte> from, std::span<std::byte> to) {
    const device::Stock<Packer>::Taken packer = co_await packers_.Take();
    Result<size_t> size = co_await device::ComputeOn(offload_, [&] { return packer->Pack(from, to); });
    co_return size;
  }

 private:
  device::Offload& offload_;
  device::Stock<Packer> packers_;
};

}  // namespace bulkhead::qcow2
