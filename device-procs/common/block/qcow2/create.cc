// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/create.h"

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/buffer.h"
#include "device-procs/common/block/qcow2/header.h"

namespace bulkhead::qcow2 {
namespace {

using device::Task;

// In the file one after the other: header, refcount table, refcount blocks, first-level table.
struct Places {
  uint64_t table_clusters = 1;
  uint64_t blocks = 1;
  uint64_t l1_clusters = 1;
  uint64_t clusters() const { return 1 + table_clusters + blocks + l1_clusters; }
};

Places Plan(const Layout& layout, uint64_t l1_entries) {
  Places places;
  places.l1_clusters = DivideUp(l1_entries * sizeof(uint64_t), layout.cluster_bytes());
  for (;;) {
    const uint64_t blocks = DivideUp(places.clusters(), layout.block_entries());
    const uint64_t table_clusters = DivideUp(blocks * sizeof(uint64_t), layout.cluster_bytes());
    if (blocks == places.blocks && table_clusters == places.table_clusters) return places;
    places.blocks = blocks;
    places.table_clusters = table_clusters;
  }
}

Result<Header> MakeHeader(const NewImage& image, const Places& places) {
  const Layout& layout = image.layout;
  Header header;
  header.version = image.version;
  header.layout = layout;
  header.size_bytes = image.size_bytes;
  header.l1_entries = static_cast<uint32_t>(layout.L1Entries(image.size_bytes));
  header.refcount_table_offset = layout.cluster_bytes();
  header.refcount_table_clusters = static_cast<uint32_t>(places.table_clusters);
  if (places.l1_clusters != 0) header.l1_offset = (places.clusters() - places.l1_clusters) << layout.cluster_bits;
  header.compatible = image.lazy_refcounts ? kLazyRefcounts : 0;
  header.compression = image.compression;
  header.incompatible = image.compression == Compression::kZlib ? 0 : kCompressionType;
  header.backing_file = image.backing_file;
  header.backing_format = image.backing_format;
  const bool needs_3 =
      layout.refcount_order != kDefaultRefcountOrder || header.incompatible != 0 || header.compatible != 0;
  if (image.version == 2 && needs_3) {
    return Error{EINVAL, "refcount width, compression type and lazy refcounts need compat=1.1"};
  }
  return header;
}

Task<Result<void>> WriteCluster(device::BlockChannel& file, uint64_t offset, const std::byte* bytes, size_t size) {
  const int error = co_await device::WriteTo(file, offset, bytes, size);
  if (error != 0) co_return ErrnoError(error, "writing the image");
  co_return Result<void>();
}

}  // namespace

Task<Result<uint64_t>> CreateImage(device::BlockChannel& file, NewImage image) {
  const Layout& layout = image.layout;
  if (image.size_bytes % kSectorBytes != 0) co_return Error{EINVAL, "the size is not a multiple of 512 bytes"};
  const uint64_t l1_entries = layout.L1Entries(image.size_bytes);
  if (l1_entries * sizeof(uint64_t) > kMaxL1Bytes) {
    co_return Error{EINVAL, "a disk of " + std::to_string(image.size_bytes) + " bytes needs clusters larger than " +
                                std::to_string(layout.cluster_bytes()) + " bytes; give cluster_size"};
  }
  const Places places = Plan(layout, l1_entries);
  const Result<Header> header = MakeHeader(image, places);
  if (!header.ok()) co_return header.error();
  const Result<std::vector<std::byte>> first = SerializeHeader(*header);
  if (!first.ok()) co_return first.error();

  // What stands there now must not be taken for an image meanwhile.
  Buffer bytes(layout.cluster_bytes());
  std::memset(bytes.data(), 0, bytes.size());
  Result<void> written = co_await WriteCluster(file, 0, bytes.data(), bytes.size());
  for (uint64_t cluster = 1; written.ok() && cluster < places.clusters(); ++cluster) {
    std::memset(bytes.data(), 0, bytes.size());
    const uint64_t entries = layout.cluster_bytes() / sizeof(uint64_t);
    if (cluster <= places.table_clusters) {
      for (uint64_t i = 0; i < entries && (cluster - 1) * entries + i < places.blocks; ++i) {
        const uint64_t block = (cluster - 1) * entries + i;
        StoreBe64(bytes.data() + i * 8, (1 + places.table_clusters + block) << layout.cluster_bits);
      }
    } else if (cluster <= places.table_clusters + places.blocks) {
      const uint64_t counted = (cluster - 1 - places.table_clusters) * layout.block_entries();
      for (uint64_t i = 0; i < layout.block_entries() && counted + i < places.clusters(); ++i) {
        StoreRefcount(bytes.data(), i, layout.refcount_order, 1);
      }
    }
    written = co_await WriteCluster(file, cluster << layout.cluster_bits, bytes.data(), bytes.size());
  }
  if (!written.ok()) co_return written.error();
  int error = co_await device::FlushOf(file);
  if (error != 0) co_return ErrnoError(error, "flushing the image");
  std::memcpy(bytes.data(), first->data(), bytes.size());
  written = co_await WriteCluster(file, 0, bytes.data(), bytes.size());
  if (!written.ok()) co_return written.error();
  error = co_await device::FlushOf(file);
  if (error != 0) co_return ErrnoError(error, "flushing the image");
  co_return places.clusters() << layout.cluster_bits;
}

}  // namespace bulkhead::qcow2
