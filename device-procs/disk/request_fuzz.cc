// SPDX-License-Identifier: Apache-2.0
// Request parsing with arbitrary chains over arbitrary memory: whatever is accepted must lie on the disk. Input: a byte
// of rules, up to 15 pieces of 8 bytes (address, length, direction), the rest is memory.
#include <cstdlib>
#include <cstring>

#include "device-procs/common/virtqueue_driver.h"
#include "device-procs/disk/request.h"
#include "ipc/fuzz_input.h"

namespace bulkhead::device {
namespace {

constexpr uint64_t kMemoryBytes = 64 * 1024;

using bulkhead::fuzz::Require;

void CheckRange(const RequestRules& rules, uint64_t offset, uint64_t size) {
  Require(offset <= rules.capacity_bytes && size <= rules.capacity_bytes - offset);
  Require(offset % rules.block_bytes == 0 && size % rules.block_bytes == 0);
}

void CheckAccepted(const GuestMemory& memory, const Chain& chain, const RequestRules& rules,
                   const DiskRequest& request) {
  for (const RequestSegment& segment : request.segments) CheckRange(rules, segment.offset_bytes, segment.size_bytes);
  Require(request.segments.size() <= kMaxSegments);
  const bool changes = request.type == RequestType::kWrite || !request.segments.empty();
  Require(!changes || !rules.read_only);
  if (request.type != RequestType::kRead && request.type != RequestType::kWrite) return;
  CheckRange(rules, request.offset_bytes, request.data_bytes);
  std::vector<iovec> vectors;
  if (!TranslateData(memory, chain, request, vectors).ok()) return;
  uint64_t total = 0;
  for (const iovec& vector : vectors) total += vector.iov_len;
  Require(total == request.data_bytes);
}

}  // namespace
}  // namespace bulkhead::device

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bulkhead;
  using namespace bulkhead::device;
  static const GuestMemory memory = device::test::MakeGuestMemory(kMemoryBytes);
  if (size < 2) return 0;
  const uint8_t flags = data[0];
  const RequestRules rules{.capacity_bytes = (flags & 8) != 0 ? uint64_t{1} << 41 : 512 * 1024,
                           .block_bytes = (flags & 16) != 0 ? 4096u : kSectorBytes,
                           .read_only = (flags & 1) != 0,
                           .discard = (flags & 2) != 0,
                           .write_zeroes = (flags & 4) != 0};
  size_t pieces = data[1] % 16;
  data += 2;
  size -= 2;
  Chain chain;
  for (; pieces != 0 && size >= 8; --pieces, data += 8, size -= 8) {
    uint32_t address, length;
    std::memcpy(&address, data, sizeof address);
    std::memcpy(&length, data + 4, sizeof length);
    // Mostly inside memory, so that most inputs get past the first check.
    const Piece piece{Gpa{address % (kMemoryBytes + 64)}, length >> 1};
    ((length & 1) != 0 ? chain.writable : chain.readable).push_back(piece);
  }
  const auto bytes = std::as_bytes(std::span(data, std::min<size_t>(size, kMemoryBytes)));
  if (!memory.Write(Gpa{0}, bytes).ok()) return 0;
  DiskRequest request;
  const RequestStatus status = ParseRequest(memory, chain, rules, request);
  if (status == RequestStatus::kOk) CheckAccepted(memory, chain, rules, request);
  if (WriteStatus(memory, chain, status) > TotalBytes(chain.writable)) std::abort();
  return 0;
}
