// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/jobs.h"

#include <algorithm>
#include <cstring>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/table_walk.h"
#include "device-procs/img/parts.h"

namespace bulkhead::img {

using device::BlockExtent;
using device::Task;
using qcow2::Buffer;

namespace {

constexpr size_t kMaxMapEntries = 2048;

// Gives every cluster of the disk a place in the file, all in order, so that later only data are written.
// With `space` it takes that on the file system as well.
Task<Result<void>> AllocateAll(qcow2::Qcow2Channel& image, bool space) {
  const uint64_t cluster_bytes = image.state().cluster_bytes();
  const uint64_t clusters = qcow2::DivideUp(image.header().size_bytes, cluster_bytes);
  for (uint64_t cluster = 0; cluster < clusters;) {
    const uint64_t in_table = image.state().layout().l2_entries() - cluster % image.state().layout().l2_entries();
    Result<qcow2::Allocation> place = co_await image.refcounts().Allocate(std::min(clusters - cluster, in_table));
    if (!place.ok()) co_return place.error();
    Result<void> changed = co_await image.mapping().Change(
        cluster, place->clusters, [offset = place->offset, cluster_bytes](uint64_t index, uint64_t) {
          return (offset + index * cluster_bytes) | qcow2::kCopied;
        });
    if (!changed.ok()) co_return changed;
    if (space) {
      // Without `unmap` the file system keeps what it allocates for zeroes.
      const int error =
          co_await device::WriteZeroesTo(image.state().file, place->offset, place->clusters * cluster_bytes, false);
      if (error != 0) co_return ErrnoError(error, "allocating the image");
    }
    cluster += place->clusters;
  }
  // The file reaches to its end. Where a table is last, it did so already.
  const uint64_t last = qcow2::DivideUp(image.state().file_end, cluster_bytes) - 1;
  if (image.state().tables.Overlaps(last, 1)) co_return Result<void>();
  Result<void> ended = co_await qcow2::ZeroClusters(image.state(), last * cluster_bytes, 1, true);
  co_return ended;
}

}  // namespace

Task<Result<void>> Open(OpenImage& image) {
  if (image.open) co_return Result<void>();
  Result<void> opened = co_await image.channel->Open();
  image.open = opened.ok();
  co_return opened;
}

Task<Result<std::vector<MapEntry>>> Map(OpenImage& image, uint64_t offset) {
  std::vector<MapEntry> entries;
  const uint64_t size_bytes = image.chain->geometry().size_bytes;
  while (offset < size_bytes && entries.size() < kMaxMapEntries) {
    Result<BlockExtent> extent = co_await image.channel->Map(offset, size_bytes - offset);
    if (!extent.ok()) co_return extent.error();
    MapEntry* last = entries.empty() ? nullptr : &entries.back();
    const bool continues =
        last != nullptr && last->extent.zero == extent->zero && last->extent.data == extent->data &&
        last->extent.compressed == extent->compressed && last->extent.backing == extent->backing &&
        last->extent.file_offset.has_value() == extent->file_offset.has_value() &&
        (!extent->file_offset || *last->extent.file_offset + last->extent.size_bytes == *extent->file_offset);
    if (continues) {
      last->extent.size_bytes += extent->size_bytes;
    } else {
      entries.push_back({offset, *extent});
    }
    offset += extent->size_bytes;
  }
  co_return entries;
}

Task<Result<void>> Create(OpenImage& image, qcow2::NewImage options, Preallocation preallocation) {
  Result<uint64_t> made = co_await qcow2::CreateImage(image.chain->file(), std::move(options));
  if (!made.ok()) co_return made.error();
  image.chain->SetFileBytes(*made);
  Result<void> done = co_await Open(image);
  if (!done.ok() || preallocation == Preallocation::kOff) co_return done;
  qcow2::Qcow2Channel& qcow2 = *image.chain->qcow2();
  done = co_await AllocateAll(qcow2, preallocation != Preallocation::kMetadata);
  if (done.ok()) done = co_await Finish(image);
  co_return done;
}

Task<Result<Comparison>> Compare(OpenImage& first, OpenImage& second, bool strict, Progress& progress) {
  Result<void> done = co_await Open(first);
  if (done.ok()) done = co_await Open(second);
  if (!done.ok()) co_return done.error();
  const uint64_t first_bytes = first.chain->geometry().size_bytes;
  const uint64_t second_bytes = second.chain->geometry().size_bytes;
  Comparison result;
  result.sizes_differ = first_bytes != second_bytes;
  if (strict && result.sizes_differ) {
    result.same = false;
    result.offset = std::min(first_bytes, second_bytes);
    co_return result;
  }
  const uint64_t size_bytes = std::max(first_bytes, second_bytes);
  progress.total = size_bytes;
  Buffer one(kChunkBytes);
  Buffer other(kChunkBytes);
  for (uint64_t offset = 0; offset < size_bytes; offset += kChunkBytes) {
    const uint64_t step = std::min(kChunkBytes, size_bytes - offset);
    done = co_await ReadPart(first, offset, one.data(), step);
    if (done.ok()) done = co_await ReadPart(second, offset, other.data(), step);
    if (!done.ok()) co_return done.error();
    const auto difference = std::mismatch(one.data(), one.data() + step, other.data());
    if (difference.first != one.data() + step) {
      result.same = false;
      result.offset = offset + static_cast<uint64_t>(difference.first - one.data());
      co_return result;
    }
    progress.done = offset + step;
  }
  co_return result;
}

Task<Result<void>> Commit(OpenImage& top, OpenImage& below, Progress& progress) {
  Result<void> done = co_await Open(top);
  if (done.ok()) done = co_await Open(below);
  if (!done.ok()) co_return done;
  if (top.chain->qcow2() == nullptr) co_return Error{EINVAL, "it has no backing file to commit to"};
  const uint64_t size_bytes = top.chain->geometry().size_bytes;
  if (below.chain->geometry().size_bytes < size_bytes) {
    if (below.chain->qcow2() == nullptr) co_return Error{EINVAL, "its backing file is smaller; resize that first"};
    done = co_await qcow2::Resize(*below.chain->qcow2(), size_bytes, false);
    if (!done.ok()) co_return done;
  }
  progress.total = size_bytes;
  Buffer bytes(kChunkBytes);
  for (uint64_t offset = 0; offset < size_bytes;) {
    Result<BlockExtent> extent = co_await top.channel->Map(offset, size_bytes - offset);
    if (!extent.ok()) co_return extent.error();
    uint64_t step = extent->size_bytes;
    if (extent->zero && !extent->backing) {
      done = co_await ZeroPart(below, offset, step);
    } else if (!extent->backing) {
      step = std::min(step, kChunkBytes);
      done = co_await ReadPart(top, offset, bytes.data(), step);
      if (done.ok()) done = co_await WritePart(below, offset, bytes.data(), step);
    }
    if (!done.ok()) co_return done;
    offset += step;
    progress.done = offset;
  }
  done = co_await Finish(below);
  // Only now: what it had is safe below.
  if (done.ok()) done = co_await qcow2::MakeEmpty(*top.chain->qcow2());
  if (done.ok()) done = co_await Finish(top);
  co_return done;
}

Task<Result<void>> Rebase(OpenImage& image, OpenImage& over, Progress& progress) {
  Result<void> done = co_await Open(image);
  if (done.ok()) done = co_await Open(over);
  if (!done.ok()) co_return done;
  if (image.chain->qcow2() == nullptr) co_return Error{EINVAL, "only a qcow2 image has a backing file"};
  const uint64_t cluster_bytes = image.chain->qcow2()->state().cluster_bytes();
  const uint64_t size_bytes = image.chain->geometry().size_bytes;
  progress.total = size_bytes;
  Buffer mine(cluster_bytes);
  Buffer theirs(cluster_bytes);
  for (uint64_t offset = 0; offset < size_bytes;) {
    Result<BlockExtent> extent = co_await image.channel->Map(offset, size_bytes - offset);
    if (!extent.ok()) co_return extent.error();
    uint64_t step = extent->size_bytes;
    if (extent->backing) {
      step = std::min(step, cluster_bytes - offset % cluster_bytes);
      done = co_await ReadPart(image, offset, mine.data(), step);
      if (done.ok()) done = co_await ReadPart(over, offset, theirs.data(), step);
      if (done.ok() && std::memcmp(mine.data(), theirs.data(), step) != 0) {
        done = co_await WritePart(image, offset, mine.data(), step);
      }
      if (!done.ok()) co_return done;
    }
    offset += step;
    progress.done = offset;
  }
  done = co_await Finish(image);
  co_return done;
}

}  // namespace bulkhead::img
