// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/request.h"

#include <algorithm>
#include <array>
#include <limits>

namespace bulkhead::device {
namespace {

// As they lie in guest memory, little-endian (§5.2.6).
struct Header {
  uint32_t type;
  uint32_t reserved;
  uint64_t sector;
};
struct Segment {
  uint64_t sector;
  uint32_t sector_count;
  uint32_t flags;
};

constexpr uint32_t kUnmapFlag = 1;
constexpr uint64_t kStatusBytes = 1;

// The byte range of a run of sectors, if all of it is on the disk and made of whole blocks.
bool ToBytes(uint64_t sector, uint64_t size_bytes, const RequestRules& rules, uint64_t& offset_bytes) {
  const uint64_t sectors = rules.capacity_bytes / kSectorBytes;
  if (sector > sectors || size_bytes > (sectors - sector) * kSectorBytes) return false;
  offset_bytes = sector * kSectorBytes;
  return offset_bytes % rules.block_bytes == 0 && size_bytes % rules.block_bytes == 0;
}

RequestStatus ParseTransfer(const Header& header, uint64_t data_bytes, uint64_t other_way_bytes,
                            const RequestRules& rules, DiskRequest& request) {
  // Data may lie on one side only: for a write nothing but the status is writable, for a read nothing but the header
  // readable.
  if (other_way_bytes != 0) return RequestStatus::kIoError;
  if (request.type == RequestType::kWrite && rules.read_only) return RequestStatus::kIoError;
  if (!ToBytes(header.sector, data_bytes, rules, request.offset_bytes)) return RequestStatus::kIoError;
  request.data_bytes = data_bytes;
  return RequestStatus::kOk;
}

RequestStatus CheckSegment(const Segment& segment, const RequestRules& rules, DiskRequest& request) {
  // §5.2.6.2: reserved bits, and unmap in a discard, are unsupported rather than wrong.
  const uint32_t known = request.type == RequestType::kWriteZeroes ? kUnmapFlag : 0;
  if ((segment.flags & ~known) != 0) return RequestStatus::kUnsupported;
  if (segment.sector_count > kMaxSegmentSectors) return RequestStatus::kIoError;
  const uint64_t size_bytes = uint64_t{segment.sector_count} * kSectorBytes;
  RequestSegment checked{.size_bytes = size_bytes, .unmap = segment.flags == kUnmapFlag};
  if (!ToBytes(segment.sector, size_bytes, rules, checked.offset_bytes)) return RequestStatus::kIoError;
  request.segments.push_back(checked);
  return RequestStatus::kOk;
}

RequestStatus ParseSegments(const GuestMemory& memory, const Chain& chain, uint64_t size_bytes,
                            const RequestRules& rules, DiskRequest& request) {
  const bool offered = request.type == RequestType::kDiscard ? rules.discard : rules.write_zeroes;
  if (!offered) return RequestStatus::kUnsupported;
  if (rules.read_only) return RequestStatus::kIoError;
  const uint64_t count = size_bytes / sizeof(Segment);
  if (count == 0 || count > kMaxSegments || size_bytes % sizeof(Segment) != 0) return RequestStatus::kIoError;
  std::array<Segment, kMaxSegments> segments;
  const auto copy = std::span(segments).first(count);
  if (!ReadPieces(memory, chain.readable, sizeof(Header), std::as_writable_bytes(copy)).ok()) {
    return RequestStatus::kIoError;
  }
  for (const Segment& segment : copy) {
    const RequestStatus status = CheckSegment(segment, rules, request);
    if (status != RequestStatus::kOk) return status;
  }
  return RequestStatus::kOk;
}

}  // namespace

RequestStatus ParseRequest(const GuestMemory& memory, const Chain& chain, const RequestRules& rules,
                           DiskRequest& request) {
  request.offset_bytes = 0;
  request.data_bytes = 0;
  request.segments.clear();
  Header header;
  if (!ReadPieces(memory, chain.readable, 0, std::as_writable_bytes(std::span(&header, 1))).ok()) {
    return RequestStatus::kIoError;
  }
  const uint64_t writable = TotalBytes(chain.writable);
  if (writable < kStatusBytes) return RequestStatus::kIoError;
  const uint64_t out_bytes = TotalBytes(chain.readable) - sizeof header;
  const uint64_t in_bytes = writable - kStatusBytes;
  request.type = static_cast<RequestType>(header.type);
  switch (request.type) {
    case RequestType::kRead:
      return ParseTransfer(header, in_bytes, out_bytes, rules, request);
    case RequestType::kWrite:
      return ParseTransfer(header, out_bytes, in_bytes, rules, request);
    case RequestType::kFlush:
      return out_bytes == 0 && in_bytes == 0 ? RequestStatus::kOk : RequestStatus::kIoError;
    case RequestType::kGetId:
      request.data_bytes = in_bytes;
      return out_bytes == 0 && in_bytes == kDiskIdBytes ? RequestStatus::kOk : RequestStatus::kIoError;
    case RequestType::kDiscard:
    case RequestType::kWriteZeroes:
      if (in_bytes != 0) return RequestStatus::kIoError;
      return ParseSegments(memory, chain, out_bytes, rules, request);
  }
  return RequestStatus::kUnsupported;
}

Result<void> TranslateData(const GuestMemory& memory, const Chain& chain, const DiskRequest& request,
                           std::vector<iovec>& vectors) {
  if (request.type == RequestType::kRead) {
    return TranslatePieces(memory, chain.writable, 0, request.data_bytes, vectors);
  }
  return TranslatePieces(memory, chain.readable, sizeof(Header), request.data_bytes, vectors);
}

uint32_t WriteStatus(const GuestMemory& memory, const Chain& chain, RequestStatus status) {
  const uint64_t writable = TotalBytes(chain.writable);
  if (writable < kStatusBytes) return 0;
  const uint64_t data = writable - kStatusBytes;
  const std::byte code{static_cast<uint8_t>(status)};
  if (!WritePieces(memory, chain.writable, data, std::span(&code, 1)).ok()) return 0;
  // What a failed read left in its buffers is nobody's promise.
  if (data != 0 && status != RequestStatus::kOk) return 0;
  return static_cast<uint32_t>(std::min<uint64_t>(writable, std::numeric_limits<uint32_t>::max()));
}

}  // namespace bulkhead::device
