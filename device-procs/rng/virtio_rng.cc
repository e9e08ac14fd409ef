// SPDX-License-Identifier: Apache-2.0
#include "device-procs/rng/virtio_rng.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace bulkhead::device {
namespace {

// The most one request is given: a larger buffer comes back partly filled, as the specification allows (§5.4.6), so
// that a guest cannot keep this thread busy with one descriptor.
constexpr uint64_t kMaxBytesPerRequest = 64 * 1024;

}  // namespace

void VirtioRng::ProcessQueue(uint16_t index) {
  Virtqueue* queue = transport_->Queue(index);
  if (queue == nullptr) return;
  if (!Serve(*queue).ok()) {
    transport_->MarkNeedsReset();
    return;
  }
  auto wanted = queue->NeedsInterrupt();
  if (wanted.ok() && *wanted) transport_->SignalQueue(index);
}

Result<void> VirtioRng::Serve(Virtqueue& queue) {
  // At most one round of the ring before the loop sees to other events.
  for (uint16_t served = 0;;) {
    auto popped = queue.PopOrEnableKicks(chain_);
    if (!popped.ok()) return popped.error();
    if (!*popped) return {};
    auto filled = Fill(chain_);
    if (!filled.ok()) return filled.error();
    if (auto pushed = queue.Push(chain_.head, *filled); !pushed.ok()) return pushed;
    if (++served == queue.layout().size) {
      SignalEventFd(transport_->KickFd(0));  // the driver owes no kick for what is left
      return {};
    }
  }
}

Result<uint32_t> VirtioRng::Fill(const Chain& chain) {
  const uint64_t wanted = std::min(TotalBytes(chain.writable), kMaxBytesPerRequest);
  std::array<std::byte, 4096> bytes;
  uint64_t done = 0;
  while (done < wanted) {
    const uint64_t now = std::min<uint64_t>(wanted - done, bytes.size());
    const ssize_t got = ::getrandom(bytes.data(), now, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return Error{EIO, "the host gave no random bytes"};
    auto written = WritePieces(memory_, chain.writable, done, std::span(bytes).first(static_cast<size_t>(got)));
    if (!written.ok()) return written.error();
    done += static_cast<uint64_t>(got);
  }
  return static_cast<uint32_t>(done);
}

}  // namespace bulkhead::device
