// SPDX-License-Identifier: Apache-2.0
// One cluster, packed and unpacked: raw deflate or zstd, as qcow2 has them (QEMU, docs/interop/qcow2.txt). Any thread,
// one at a time. What is unpacked is the file's: hostile; memory and time are bounded by the cluster.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "device-procs/common/block/qcow2/format.h"
#include "ipc/result.h"

namespace bulkhead::qcow2 {

class Unpacker {
 public:
  Unpacker();
  ~Unpacker();
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;

  // Fills `to`; what follows in `from` belongs to others.
  Result<void> Unpack(Compression kind, std::span<const std::byte> from, std::span<std::byte> to);

 private:
  Result<void> Inflate(std::span<const std::byte> from, std::span<std::byte> to);
  Result<void> Zstd(std::span<const std::byte> from, std::span<std::byte> to);

  struct Streams;
  std::unique_ptr<Streams> streams_;
};

class Packer {
 public:
  explicit Packer(Compression kind);
  ~Packer();
  Packer(const Packer&) = delete;
  Packer& operator=(const Packer&) = delete;

  // How many bytes of `to` it took; 0 if they do not fit.
  Result<size_t> Pack(std::span<const std::byte> from, std::span<std::byte> to);

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace bulkhead::qcow2
