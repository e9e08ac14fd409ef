// SPDX-License-Identifier: Apache-2.0
// libFuzzer: a virtqueue whose guest memory is the fuzzer's bytes, used as devices use one. The device side must come
// to an end, keep to its memory, and call only a chain good that is.
#include <cstring>

#include "device-procs/common/virtqueue.h"
#include "device-procs/common/virtqueue_driver.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using bulkhead::fuzz::Require;

constexpr uint64_t kMemoryBytes = 16 * 1024;

struct Header {
  uint8_t size_log2;
  uint8_t event_index;
  uint16_t next_available;
  uint16_t next_used;
  uint16_t descriptors;
  uint16_t available;
  uint16_t used;
};

void CheckChain(const Chain& chain, const QueueLayout& layout) {
  Require(chain.head < layout.size);
  const size_t pieces = chain.readable.size() + chain.writable.size();
  Require(pieces >= 1 && pieces <= layout.size);
  for (const auto* part : {&chain.readable, &chain.writable}) {
    for (const Piece& piece : *part) Require(piece.address.value + piece.length_bytes >= piece.address.value);
  }
}

void UseChain(const GuestMemory& memory, const Chain& chain) {
  std::array<std::byte, 64> bytes{};
  const uint64_t readable = TotalBytes(chain.readable);
  const uint64_t writable = TotalBytes(chain.writable);
  (void)ReadPieces(memory, chain.readable, readable / 2, std::span(bytes).first(std::min<uint64_t>(64, readable))).ok();
  (void)WritePieces(memory, chain.writable, writable / 3, std::span(bytes).first(std::min<uint64_t>(64, writable)))
      .ok();
  std::vector<iovec> vectors;
  if (TranslatePieces(memory, chain.writable, 0, writable, vectors).ok()) {
    uint64_t total = 0;
    for (const iovec& vector : vectors) total += vector.iov_len;
    Require(total == writable);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const GuestMemory memory = test::MakeGuestMemory(kMemoryBytes);
  Header header;
  if (size < sizeof header) return 0;
  std::memcpy(&header, data, sizeof header);
  const auto contents = std::as_bytes(std::span(data, size)).subspan(sizeof header);
  OrThrow(memory.Fill(Gpa{0}, kMemoryBytes, std::byte{0}));
  OrThrow(memory.Write(Gpa{0}, contents.first(std::min<size_t>(contents.size(), kMemoryBytes))));

  const QueueLayout layout{.size = static_cast<uint16_t>(1u << (header.size_log2 % 10)),
                           .descriptors = Gpa{header.descriptors},
                           .available = Gpa{header.available},
                           .used = Gpa{header.used},
                           .event_index = (header.event_index & 1) != 0};
  auto queue = Virtqueue::Create(memory, layout, {header.next_available, header.next_used});
  if (!queue.ok()) return 0;
  Chain chain;
  // What the device writes may change what is still to come, so a queue can go on for long; it may not get stuck.
  for (int i = 0; i < 64; ++i) {
    auto popped = queue->PopOrEnableKicks(chain);
    if (!popped.ok() || !*popped) break;
    CheckChain(chain, layout);
    if (i % 8 == 7) {
      queue->UndoPop();
      if (!queue->DisableKicks().ok()) break;
      continue;
    }
    UseChain(memory, chain);
    if (!queue->Push(chain.head, static_cast<uint32_t>(i)).ok()) break;
    if (i % 2 == 1 && !queue->NeedsInterrupt().ok()) break;
  }
  return 0;
}
