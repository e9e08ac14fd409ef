// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow1_channel.h"

#include <algorithm>
#include <cerrno>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow2/vectors.h"

namespace bulkhead::qcow1 {
namespace {

using device::BlockCompletion;
using device::Task;
using qcow2::Buffer;
using qcow2::DivideUp;
using qcow2::kMagic;
using qcow2::kSectorBytes;
using qcow2::LoadBe32;
using qcow2::LoadBe64;
using qcow2::RoundUp;

enum Field : size_t {
  kVersion = 4,
  kBackingOffset = 8,
  kBackingSize = 16,
  kSize = 24,
  kClusterBits = 32,
  kL2Bits = 33,
  kCryptMethod = 36,
  kL1Offset = 40,
};
constexpr uint32_t kMinClusterBits = 9;
constexpr uint32_t kMaxClusterBits = 16;
constexpr uint32_t kMinL2Bits = 6;
constexpr uint32_t kMaxL2Bits = 13;
constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 56;
constexpr uint64_t kCompressed = uint64_t{1} << 63;
constexpr size_t kMaxRunning = 256;
constexpr uint64_t kCacheBytes = uint64_t{512} << 10;
constexpr uint64_t kReadPiece = 64 * 1024;

Error Bad(const std::string& what) { return {EINVAL, what}; }

Result<void> CheckHeader(const Header& header) {
  if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits) {
    return Bad("its clusters are of 2^" + std::to_string(header.cluster_bits) +
               " bytes; 512 bytes to 64 KiB are possible");
  }
  if (header.l2_bits < kMinL2Bits || header.l2_bits > kMaxL2Bits) {
    return Bad("its second-level tables have 2^" + std::to_string(header.l2_bits) + " entries, which cannot be");
  }
  if (header.l1_entries * sizeof(uint64_t) > kMaxL1Bytes) {
    return Bad("its disk of " + std::to_string(header.size_bytes) + " bytes is too large for its clusters");
  }
  const bool aligned = header.l1_offset % sizeof(uint64_t) == 0 && header.l1_offset < kMaxFileBytes;
  if (!aligned || (header.l1_offset == 0 && header.l1_entries != 0))
    return Bad("its tables are not where tables can be");
  if (header.backing_offset == 0) return {};
  if (header.backing_bytes > qcow2::kMaxBackingNameBytes || header.backing_offset >= kMaxFileBytes) {
    return Bad("the name of its backing file is not where it can be");
  }
  return {};
}

}  // namespace

struct Qcow1Channel::Extent {
  enum class Kind : uint8_t { kUnallocated, kData, kCompressed };
  Kind kind = Kind::kUnallocated;
  uint64_t size_bytes = 0;    // of the disk
  uint64_t file_offset = 0;   // of its first byte; kCompressed: of the packed cluster
  uint64_t packed_bytes = 0;  // at most
  uint64_t entry = 0;
};

bool LooksLikeQcow1(std::span<const std::byte> bytes) {
  return bytes.size() >= 8 && LoadBe32(bytes.data()) == kMagic && LoadBe32(bytes.data() + kVersion) == 1;
}

Result<Header> ParseHeader(std::span<const std::byte> bytes) {
  if (bytes.size() < kSectorBytes || !LooksLikeQcow1(bytes)) return Bad("it is not a qcow image of version 1");
  Header header;
  header.backing_offset = LoadBe64(bytes.data() + kBackingOffset);
  header.backing_bytes = LoadBe32(bytes.data() + kBackingSize);
  // What follows the last whole sector cannot be read by a disk of sectors.
  header.size_bytes = LoadBe64(bytes.data() + kSize) / kSectorBytes * kSectorBytes;
  header.cluster_bits = static_cast<uint8_t>(bytes[kClusterBits]);
  header.l2_bits = static_cast<uint8_t>(bytes[kL2Bits]);
  header.l1_offset = LoadBe64(bytes.data() + kL1Offset);
  if (LoadBe32(bytes.data() + kCryptMethod) != 0) return Bad("it is encrypted, which is not supported");
  // Shifts by what is not checked yet are none by 64.
  const uint32_t reach_bits = std::min(header.cluster_bits + header.l2_bits, 63u);
  header.l1_entries = DivideUp(header.size_bytes, uint64_t{1} << reach_bits);
  if (auto checked = CheckHeader(header); !checked.ok()) return checked.error();
  return header;
}

Qcow1Channel::Qcow1Channel(device::BlockChannel& file, const device::BlockGeometry& file_geometry,
                           device::Offload& offload, qcow2::Backing backing)
    : file_(file),
      file_end_(RoundUp(file_geometry.size_bytes, kSectorBytes)),
      backing_(backing),
      work_(file_geometry.stored_bytes),
      unpacking_(offload) {}

Qcow1Channel::~Qcow1Channel() = default;

Task<Result<void>> Qcow1Channel::Open() {
  Buffer first(kSectorBytes);
  const int error = co_await device::ReadFrom(file_, 0, first.data(), first.size());
  if (error != 0) co_return ErrnoError(error, "reading the header");
  const Result<Header> header = ParseHeader(first.span());
  if (!header.ok()) co_return header.error();
  header_ = *header;
  const uint64_t table_bytes = sizeof(uint64_t) << header_.l2_bits;
  cache_ = std::make_unique<qcow2::TableCache>(file_, std::min<uint64_t>(table_bytes, 4096), kCacheBytes);
  Result<void> done = co_await ReadBackingName();
  if (!done.ok()) co_return done;
  done = co_await ReadL1();
  co_return done;
}

Task<Result<void>> Qcow1Channel::ReadBackingName() {
  if (header_.backing_offset == 0 || header_.backing_bytes == 0) co_return Result<void>();
  if (header_.backing_offset >= file_end_ || header_.backing_bytes > file_end_ - header_.backing_offset) {
    co_return Bad("the name of its backing file ends past the end of the file");
  }
  const uint64_t skipped = header_.backing_offset % kSectorBytes;
  Buffer bytes(RoundUp(skipped + header_.backing_bytes, kSectorBytes));
  const int error = co_await device::ReadFrom(file_, header_.backing_offset - skipped, bytes.data(), bytes.size());
  if (error != 0) co_return ErrnoError(error, "reading the name of its backing file");
  backing_file_.assign(reinterpret_cast<const char*>(bytes.data()) + skipped, header_.backing_bytes);
  if (backing_file_.find('\0') != std::string::npos) co_return Bad("the name of its backing file has a zero byte");
  co_return Result<void>();
}

Task<Result<void>> Qcow1Channel::ReadL1() {
  const uint64_t size_bytes = header_.l1_entries * sizeof(uint64_t);
  if (size_bytes == 0) co_return Result<void>();
  if (header_.l1_offset >= file_end_ || size_bytes > file_end_ - header_.l1_offset) {
    co_return Bad("its first-level table ends past the end of the file");
  }
  l1_.reserve(header_.l1_entries);
  Buffer piece(kReadPiece);
  const uint64_t skipped = header_.l1_offset % kSectorBytes;
  for (uint64_t done = 0; done < skipped + size_bytes; done += kReadPiece) {
    const uint64_t wanted = std::min(kReadPiece, skipped + size_bytes - done);
    const uint64_t from = header_.l1_offset - skipped + done;
    const int error = co_await device::ReadFrom(file_, from, piece.data(), RoundUp(wanted, kSectorBytes));
    if (error != 0) co_return ErrnoError(error, "reading its first-level table");
    for (uint64_t at = done == 0 ? skipped : 0; at < wanted; at += sizeof(uint64_t)) {
      const uint64_t entry = LoadBe64(piece.data() + at);
      const uint64_t table_bytes = sizeof(uint64_t) << header_.l2_bits;
      if (entry % kSectorBytes != 0 || (entry != 0 && (entry >= file_end_ || table_bytes > file_end_ - entry))) {
        co_return Bad("its first-level table has an entry (" + std::to_string(l1_.size()) + ") that cannot be");
      }
      l1_.push_back(entry);
    }
  }
  co_return Result<void>();
}

Result<Qcow1Channel::Extent> Qcow1Channel::Decode(uint64_t entry) const {
  Extent extent;
  if (entry == 0) return extent;
  extent.entry = entry;
  extent.file_offset = entry;
  uint64_t stored = cluster_bytes();
  if ((entry & kCompressed) != 0) {
    const uint32_t offset_bits = 63 - header_.cluster_bits;
    extent.kind = Extent::Kind::kCompressed;
    extent.file_offset = entry & ((uint64_t{1} << offset_bits) - 1);
    extent.packed_bytes = (entry >> offset_bits) & (cluster_bytes() - 1);
    stored = extent.packed_bytes;
  } else {
    extent.kind = Extent::Kind::kData;
  }
  // The last cluster may end with the file.
  const uint64_t end = RoundUp(file_end_, cluster_bytes());
  const bool aligned = extent.kind == Extent::Kind::kCompressed || entry % kSectorBytes == 0;
  if (!aligned || stored == 0 || extent.file_offset >= end || stored > end - extent.file_offset) {
    return Error{EIO, "a table entry is " + std::to_string(entry) + ", which cannot be"};
  }
  return extent;
}

Task<Result<Qcow1Channel::Extent>> Qcow1Channel::Find(uint64_t offset, uint64_t size_bytes) {
  const uint64_t cluster = offset >> header_.cluster_bits;
  const uint64_t in_cluster = offset & (cluster_bytes() - 1);
  const uint64_t table = l1_[cluster >> header_.l2_bits];
  if (table == 0) {
    const uint64_t reach = cluster_bytes() << header_.l2_bits;
    Extent extent;
    extent.size_bytes = std::min(size_bytes, reach - offset % reach);
    co_return extent;
  }
  const uint64_t slice_bytes = cache_->slice_bytes();
  const uint64_t at = (cluster & ((uint64_t{1} << header_.l2_bits) - 1)) * sizeof(uint64_t);
  const uint64_t slice_at = table + at / slice_bytes * slice_bytes;
  const qcow2::Slice* slice = cache_->Find(slice_at);
  while (slice == nullptr) {
    Result<void> loaded = co_await cache_->Load(slice_at, qcow2::TableKind::kL2);
    if (!loaded.ok()) co_return loaded.error();
    slice = cache_->Find(slice_at);
  }
  uint64_t index = at % slice_bytes;
  Result<Extent> first = Decode(LoadBe64(slice->bytes.data() + index));
  if (!first.ok()) co_return first;
  uint64_t reached = cluster_bytes() - in_cluster;
  while (first->kind != Extent::Kind::kCompressed && reached < size_bytes && (index += 8) < slice_bytes) {
    const uint64_t next = LoadBe64(slice->bytes.data() + index);
    const uint64_t wanted = first->kind == Extent::Kind::kData ? first->entry + in_cluster + reached : 0;
    if (next != wanted || !Decode(next).ok()) break;
    reached += cluster_bytes();
  }
  if (first->kind == Extent::Kind::kData) first->file_offset += in_cluster;
  first->size_bytes = std::min(size_bytes, reached);
  co_return first;
}

Task<Result<void>> Qcow1Channel::ReadAll(uint64_t offset, std::vector<iovec> to) {
  const uint64_t size_bytes = qcow2::SizeOf(to);
  for (uint64_t done = 0; done < size_bytes;) {
    Result<Extent> extent = co_await Find(offset + done, size_bytes - done);
    if (!extent.ok()) co_return extent.error();
    Result<void> read = co_await ReadPiece(offset + done, *extent, qcow2::Piece(to, done, extent->size_bytes));
    if (!read.ok()) co_return read;
    done += extent->size_bytes;
  }
  co_return Result<void>();
}

Task<Result<void>> Qcow1Channel::ReadPiece(uint64_t offset, Extent extent, std::vector<iovec> to) {
  int error = 0;
  switch (extent.kind) {
    case Extent::Kind::kCompressed: {
      Result<void> read = co_await ReadCompressed(offset & (cluster_bytes() - 1), extent, std::move(to));
      co_return read;
    }
    case Extent::Kind::kData:
      error = co_await device::ReadFrom(file_, extent.file_offset, to);
      break;
    case Extent::Kind::kUnallocated: {
      const uint64_t there =
          offset < backing_.size_bytes ? std::min(extent.size_bytes, backing_.size_bytes - offset) : 0;
      qcow2::Zero(qcow2::Piece(to, there, extent.size_bytes - there));
      const std::vector<iovec> piece = qcow2::Piece(to, 0, there);
      if (there != 0) error = co_await device::ReadFrom(*backing_.channel, offset, piece);
      break;
    }
  }
  if (error != 0) co_return ErrnoError(error, "reading the image");
  co_return Result<void>();
}

Task<Result<void>> Qcow1Channel::ReadCompressed(uint64_t in_cluster, Extent extent, std::vector<iovec> to) {
  if (unpacked_.bytes && unpacked_.entry == extent.entry) {
    qcow2::CopyTo(to, unpacked_.bytes.data() + in_cluster);
    co_return Result<void>();
  }
  const uint64_t skipped = extent.file_offset % kSectorBytes;
  const uint64_t read_bytes = RoundUp(skipped + extent.packed_bytes, kSectorBytes);
  const qcow2::BufferBudget::Share share = co_await budget_.Take(read_bytes + cluster_bytes());
  Buffer packed(read_bytes);
  const int error = co_await device::ReadFrom(file_, extent.file_offset - skipped, packed.data(), read_bytes);
  if (error != 0) co_return ErrnoError(error, "reading the image");
  Buffer bytes(cluster_bytes());
  Result<void> unpacked = co_await unpacking_.Unpack(qcow2::Compression::kZlib,
                                                     packed.span().subspan(skipped, extent.packed_bytes), bytes.span());
  if (!unpacked.ok()) co_return unpacked;
  qcow2::CopyTo(to, bytes.data() + in_cluster);
  unpacked_.entry = extent.entry;
  unpacked_.bytes = std::move(bytes);
  co_return Result<void>();
}

device::Spawned Qcow1Channel::Run(Task<Result<void>> work, BlockCompletion& done) {
  while (running_ >= kMaxRunning) co_await may_run_.Wait();
  ++running_;
  const Result<void> result = co_await work;
  const int error = result.ok() ? 0 : (result.error().code != 0 ? result.error().code : EIO);
  --running_;
  may_run_.WakeOne();
  done.Completed(error);
}

void Qcow1Channel::Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) {
  Run(ReadAll(offset, {to.begin(), to.end()}), done);
}

void Qcow1Channel::Write(uint64_t, std::span<const iovec>, BlockCompletion& done) { done.Completed(EROFS); }

void Qcow1Channel::Discard(uint64_t, uint64_t, BlockCompletion& done) { done.Completed(EROFS); }

void Qcow1Channel::WriteZeroes(uint64_t, uint64_t, bool, BlockCompletion& done) { done.Completed(EROFS); }

Task<Result<device::BlockExtent>> Qcow1Channel::Map(uint64_t offset, uint64_t size_bytes) {
  const Result<Extent> found = co_await Find(offset, size_bytes);
  if (!found.ok()) co_return found.error();
  const bool has_table = l1_[offset >> header_.cluster_bits >> header_.l2_bits] != 0;
  const uint64_t looked_at = has_table ? DivideUp(found->size_bytes, cluster_bytes()) : uint64_t{1};
  if (Result<void> spent = work_.Spend(looked_at); !spent.ok()) co_return spent.error();
  device::BlockExtent extent{.size_bytes = found->size_bytes, .file_offset = {}};
  extent.data = found->kind != Extent::Kind::kUnallocated;
  extent.compressed = found->kind == Extent::Kind::kCompressed;
  extent.backing = !extent.data;
  extent.zero = extent.backing && backing_.channel == nullptr && backing_file_.empty();
  if (found->kind == Extent::Kind::kData) extent.file_offset = found->file_offset;
  co_return extent;
}

}  // namespace bulkhead::qcow1
