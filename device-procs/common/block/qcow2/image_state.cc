// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/image_state.h"

#include <algorithm>

#include "device-procs/common/block/block_task.h"

namespace bulkhead::qcow2 {

using device::Task;

bool TableMap::Add(uint64_t first_cluster, uint64_t count) {
  const bool free = !Overlaps(first_cluster, count);
  const auto at = std::lower_bound(clusters_.begin(), clusters_.end(), first_cluster);
  std::vector<uint64_t> added(count);
  for (uint64_t i = 0; i < count; ++i) added[i] = first_cluster + i;
  clusters_.insert(at, added.begin(), added.end());
  if (!free) std::sort(clusters_.begin(), clusters_.end());
  return free;
}

size_t TableMap::AddAll(std::vector<uint64_t> clusters) {
  clusters_.insert(clusters_.end(), clusters.begin(), clusters.end());
  std::sort(clusters_.begin(), clusters_.end());
  const auto end = std::unique(clusters_.begin(), clusters_.end());
  const auto twice = static_cast<size_t>(clusters_.end() - end);
  clusters_.erase(end, clusters_.end());
  return twice;
}

void TableMap::Remove(uint64_t first_cluster, uint64_t count) {
  const auto from = std::lower_bound(clusters_.begin(), clusters_.end(), first_cluster);
  clusters_.erase(from, std::lower_bound(from, clusters_.end(), first_cluster + count));
}

bool TableMap::Overlaps(uint64_t first_cluster, uint64_t count) const {
  const auto at = std::lower_bound(clusters_.begin(), clusters_.end(), first_cluster);
  return at != clusters_.end() && *at - first_cluster < count;
}

void WholeTable::EncodeSector(uint64_t sector, std::byte* out) const {
  const uint64_t first = sector * kEntriesPerSector;
  for (uint64_t i = 0; i < kEntriesPerSector; ++i) {
    StoreBe64(out + i * sizeof(uint64_t), first + i < entries.size() ? entries[first + i] : 0);
  }
}

ImageState::ImageState(device::BlockChannel& the_file, const device::BlockGeometry& file_geometry, bool device,
                       std::function<void(const std::string&)> the_log)
    : file(the_file),
      block_device(device),
      log(std::move(the_log)),
      read_only(file_geometry.read_only),
      file_end(file_geometry.size_bytes),
      work(file_geometry.stored_bytes) {}

Error ImageState::Corrupt(const std::string& what) {
  if (!corrupt) {
    corrupt = true;
    if (log) log("the image is corrupt: " + what + "; repair it with `bulkhead img check -r all`");
    if (!read_only && header.version >= 3) WriteCorruptBit();
  }
  return {EIO, "the image is corrupt: " + what};
}

device::Spawned ImageState::WriteCorruptBit() {
  marking_ = true;
  header.incompatible |= kCorrupt;
  // That it is corrupt stays true if this fails.
  (void)co_await WriteHeaderSector(*this);
  marking_ = false;
  marked_.WakeAll();
}

Task<Result<void>> ImageState::Marked() {
  while (marking_) co_await marked_.Wait();
  co_return Result<void>();
}

Task<Result<void>> WriteHeaderSector(ImageState& state) {
  // A copy: the next change may come while this one is written.
  Buffer sector(kSectorBytes);
  UpdateHeader(state.header, state.header_sector.span());
  std::memcpy(sector.data(), state.header_sector.data(), kSectorBytes);
  int error = co_await device::WriteTo(state.file, 0, sector.data(), kSectorBytes);
  if (error == 0) error = co_await device::FlushOf(state.file);
  if (error != 0) co_return ErrnoError(error, "writing the header");
  co_return Result<void>();
}

}  // namespace bulkhead::qcow2
