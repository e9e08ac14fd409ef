// SPDX-License-Identifier: Apache-2.0
// Parsing of virtio-blk requests (virtio 1.2 §5.2.6), apart from the device that carries them out: what the driver put
// into a descriptor chain becomes a checked request or the status that refuses it. Queue thread. Chains and the memory
// they name are the guest's: hostile; header and segments are copied once, then checked.
#pragma once

#include <cstdint>
#include <vector>

#include "device-procs/common/virtqueue.h"
#include "ipc/guest_memory.h"

namespace bulkhead::device {

inline constexpr uint32_t kSectorBytes = 512;  // the unit of the protocol, whatever the logical block size
inline constexpr uint32_t kDiskIdBytes = 20;
// Of one discard or write-zeroes request; offered in the configuration structure (§5.2.4).
inline constexpr uint32_t kMaxSegments = 16;
inline constexpr uint32_t kMaxSegmentSectors = 1u << 19;  // 256 MiB

enum class RequestType : uint32_t {
  kRead = 0,
  kWrite = 1,
  kFlush = 4,
  kGetId = 8,
  kDiscard = 11,
  kWriteZeroes = 13,
};

enum class RequestStatus : uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };

// What requests are checked against: the disk, and what was negotiated.
struct RequestRules {
  uint64_t capacity_bytes = 0;
  uint32_t block_bytes = kSectorBytes;  // logical block: what transfers are multiples of
  bool read_only = false;
  bool discard = false;       // VIRTIO_BLK_F_DISCARD
  bool write_zeroes = false;  // VIRTIO_BLK_F_WRITE_ZEROES
};

struct RequestSegment {
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  bool unmap = false;
};

struct DiskRequest {
  RequestType type = RequestType::kRead;
  uint64_t offset_bytes = 0;             // kRead, kWrite
  uint64_t data_bytes = 0;               // bytes that move to or from the chain, header and status left out
  std::vector<RequestSegment> segments;  // kDiscard, kWriteZeroes
};

// Checks the chain and fills `request`, whose buffers are reused. kOk: it may be carried out. Else it is refused, and
// `request` says no more than its type.
RequestStatus ParseRequest(const GuestMemory& memory, const Chain& chain, const RequestRules& rules,
                           DiskRequest& request);

// Appends the data of a read or write request as I/O vectors; an error where it is not guest RAM.
Result<void> TranslateData(const GuestMemory& memory, const Chain& chain, const DiskRequest& request,
                           std::vector<iovec>& vectors);

// Writes the status byte, the last writable one. Returns the used length: how many bytes, from the start of the
// writable part, are certain to have been written (§2.7.8.2). A chain without room for a status gets none.
uint32_t WriteStatus(const GuestMemory& memory, const Chain& chain, RequestStatus status);

}  // namespace bulkhead::device
