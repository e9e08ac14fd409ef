// SPDX-License-Identifier: Apache-2.0
// The header of a qcow2 file, versions 2 and 3 (QEMU, docs/interop/qcow2.txt, "Header"): from bytes to checked values
// and back. Pure. The bytes are the file's author's: hostile.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "device-procs/common/block/qcow2/format.h"
#include "ipc/result.h"

namespace bulkhead::qcow2 {

// What is not understood and goes back to the file as it was.
struct UnknownExtension {
  uint32_t type = 0;
  std::vector<std::byte> data;
};

struct Header {
  uint32_t version = 3;
  Layout layout;
  uint64_t size_bytes = 0;  // of the disk
  uint32_t l1_entries = 0;
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0;
  uint64_t compatible = 0;
  uint64_t autoclear = 0;
  Compression compression = Compression::kZlib;
  std::string backing_file;    // as written; empty: none
  std::string backing_format;  // empty: not said
  std::vector<UnknownExtension> unknown;

  uint64_t refcount_table_bytes() const { return uint64_t{refcount_table_clusters} << layout.cluster_bits; }
};

// Whether these bytes begin like a qcow2 file of version 2 or 3.
bool LooksLikeQcow2(std::span<const std::byte> bytes);

// `bytes` is the file from its start, its first cluster or all of it if that is shorter, zeroes after its end. Every
// number is in the bounds that reading needs; whether tables lie in the file is for whoever reads them.
Result<Header> ParseHeader(std::span<const std::byte> bytes);

// The first cluster of a file with this header; an error if it does not fit.
Result<std::vector<std::byte>> SerializeHeader(const Header& header);

// Puts what changes while an image is in use into the bytes of its header, the first sector at least: sizes, where
// tables are, feature bits.
void UpdateHeader(const Header& header, std::span<std::byte> bytes);

// The cluster size alone, so that the caller knows how much to read for ParseHeader.
Result<uint32_t> ParseClusterBits(std::span<const std::byte> bytes);

}  // namespace bulkhead::qcow2
