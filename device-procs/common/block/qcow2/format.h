// SPDX-License-Identifier: Apache-2.0
// The numbers of the qcow2 format (QEMU, docs/interop/qcow2.txt), and its entries taken apart. All integers in a file
// are big-endian. Pure; entries come from files: hostile.
#pragma once

#include <endian.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace bulkhead::qcow2 {

constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
constexpr uint32_t kSectorBytes = 512;

constexpr uint32_t kMinClusterBits = 9;
constexpr uint32_t kMaxClusterBits = 21;  // what QEMU takes; the format allows more
constexpr uint32_t kDefaultClusterBits = 16;
constexpr uint32_t kMaxRefcountOrder = 6;
constexpr uint32_t kDefaultRefcountOrder = 4;

// Tables that are kept in memory as a whole are refused beyond these sizes, which are QEMU's as well.
constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;
constexpr uint64_t kMaxRefcountTableBytes = uint64_t{8} << 20;
constexpr uint32_t kMaxSnapshots = 65536;
constexpr uint64_t kMaxSnapshotTableBytes = uint64_t{16} << 20;
constexpr uint32_t kMaxSnapshotExtraBytes = 1024;
constexpr uint32_t kMaxBackingNameBytes = 1023;

// Incompatible features: whoever does not know one may not open the image.
constexpr uint64_t kDirty = 1 << 0;    // refcounts may be wrong
constexpr uint64_t kCorrupt = 1 << 1;  // tables may be wrong: not to be written
constexpr uint64_t kExternalData = 1 << 2;
constexpr uint64_t kCompressionType = 1 << 3;
constexpr uint64_t kExtendedL2 = 1 << 4;
// Compatible ones may be ignored.
constexpr uint64_t kLazyRefcounts = 1 << 0;
// Autoclear: whoever writes and does not know one clears it.
constexpr uint64_t kBitmaps = 1 << 0;

enum class Compression : uint8_t { kZlib = 0, kZstd = 1 };

// Types of header extensions.
enum Extension : uint32_t {
  kEndOfExtensions = 0,
  kBackingFormat = 0xe2792aca,
  kFeatureNames = 0x6803f857,
  kBitmapsExtension = 0x23852875,
};

constexpr uint64_t kOffsetMask = 0x00ff'ffff'ffff'fe00;  // of L1, L2 and refcount table entries: bits 9 to 55
constexpr uint64_t kCopied = uint64_t{1} << 63;          // the refcount is exactly one
constexpr uint64_t kCompressed = uint64_t{1} << 62;
constexpr uint64_t kZero = 1;  // version 3: reads as zeroes, whatever the offset
constexpr uint64_t kL1Reserved = ~(kOffsetMask | kCopied);
constexpr uint64_t kL2Reserved = ~(kOffsetMask | kCopied | kCompressed | kZero);
constexpr uint64_t kRefcountTableReserved = ~kOffsetMask;
// No offset in a file lies beyond what an entry can name.
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 56;

inline uint64_t LoadBe64(const void* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return be64toh(value);
}
inline void StoreBe64(void* to, uint64_t value) {
  value = htobe64(value);
  std::memcpy(to, &value, sizeof value);
}
inline uint32_t LoadBe32(const void* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return be32toh(value);
}
inline void StoreBe32(void* to, uint32_t value) {
  value = htobe32(value);
  std::memcpy(to, &value, sizeof value);
}
inline uint16_t LoadBe16(const void* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return be16toh(value);
}
inline void StoreBe16(void* to, uint16_t value) {
  value = htobe16(value);
  std::memcpy(to, &value, sizeof value);
}

constexpr uint64_t DivideUp(uint64_t value, uint64_t by) { return value / by + (value % by != 0 ? 1 : 0); }
constexpr uint64_t RoundUp(uint64_t value, uint64_t to) { return DivideUp(value, to) * to; }

// What follows from cluster size and refcount width.
struct Layout {
  uint32_t cluster_bits = kDefaultClusterBits;
  uint32_t refcount_order = kDefaultRefcountOrder;

  uint64_t cluster_bytes() const { return uint64_t{1} << cluster_bits; }
  uint64_t cluster_mask() const { return cluster_bytes() - 1; }
  uint64_t l2_entries() const { return cluster_bytes() / sizeof(uint64_t); }
  uint32_t l2_bits() const { return cluster_bits - 3; }
  // Guest bytes that one L2 table, so one L1 entry, stands for.
  uint64_t l2_reach() const { return cluster_bytes() << l2_bits(); }
  uint64_t L1Entries(uint64_t size_bytes) const { return DivideUp(size_bytes, l2_reach()); }

  uint32_t refcount_bits() const { return 1u << refcount_order; }
  uint64_t max_refcount() const { return refcount_order == 6 ? ~uint64_t{0} : (uint64_t{1} << refcount_bits()) - 1; }
  // Clusters that one refcount block counts.
  uint64_t block_entries() const { return cluster_bytes() * 8 >> refcount_order; }
  uint32_t block_bits() const { return cluster_bits + 3 - refcount_order; }

  // Tables are read and written in pieces: enough of a cluster for one disk block, all of a smaller one.
  uint64_t slice_bytes() const { return std::min<uint64_t>(cluster_bytes(), 4096); }
};

// The entry of a compressed cluster: where its data start, in bytes, and how many bytes at most they are.
struct CompressedExtent {
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
};
inline CompressedExtent DecodeCompressed(uint64_t entry, const Layout& layout) {
  const uint32_t offset_bits = 62 - (layout.cluster_bits - 8);
  const uint64_t offset = entry & ((uint64_t{1} << offset_bits) - 1);
  const uint64_t more_sectors = (entry & ~(kCopied | kCompressed)) >> offset_bits;
  return {.offset = offset, .size_bytes = (more_sectors + 1) * kSectorBytes - offset % kSectorBytes};
}
inline uint64_t EncodeCompressed(uint64_t offset, uint64_t size_bytes, const Layout& layout) {
  const uint32_t offset_bits = 62 - (layout.cluster_bits - 8);
  const uint64_t more_sectors = (offset + size_bytes - 1) / kSectorBytes - offset / kSectorBytes;
  return kCompressed | more_sectors << offset_bits | offset;
}

// One refcount of a block; `index` in entries. The narrow ones share bytes, the lowest bits first.
inline uint64_t LoadRefcount(const void* block, uint64_t index, uint32_t order) {
  const auto* bytes = static_cast<const uint8_t*>(block);
  switch (order) {
    case 3:
      return bytes[index];
    case 4:
      return LoadBe16(bytes + 2 * index);
    case 5:
      return LoadBe32(bytes + 4 * index);
    case 6:
      return LoadBe64(bytes + 8 * index);
    default: {
      const uint64_t bit = index << order;
      return static_cast<uint64_t>(bytes[bit / 8] >> (bit % 8)) & ((1u << (1u << order)) - 1);
    }
  }
}
inline void StoreRefcount(void* block, uint64_t index, uint32_t order, uint64_t value) {
  auto* bytes = static_cast<uint8_t*>(block);
  switch (order) {
    case 3:
      bytes[index] = static_cast<uint8_t>(value);
      break;
    case 4:
      StoreBe16(bytes + 2 * index, static_cast<uint16_t>(value));
      break;
    case 5:
      StoreBe32(bytes + 4 * index, static_cast<uint32_t>(value));
      break;
    case 6:
      StoreBe64(bytes + 8 * index, value);
      break;
    default: {
      const uint64_t bit = index << order;
      const uint32_t mask = ((1u << (1u << order)) - 1) << (bit % 8);
      bytes[bit / 8] = static_cast<uint8_t>((bytes[bit / 8] & ~mask) | ((value << (bit % 8)) & mask));
      break;
    }
  }
}

}  // namespace bulkhead::qcow2
