// SPDX-License-Identifier: Apache-2.0
// libFuzzer: both ends of a packet ring, between which the shared memory is rewritten. As long as it was not, each
// frame arrives, whole and in order; after that each end still comes back, with a frame of a possible size or EPROTO.
#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "ipc/fuzz_input.h"
#include "ipc/packet_ring.h"

namespace {

using namespace bulkhead;
using fuzz::FuzzInput;
using fuzz::Require;

constexpr size_t kSpaceBytes = 4096;

class Ring {
 public:
  // Ends that start where the ring stands: in the middle of whatever a peer has made of it.
  explicit Ring(PacketRingMemory* memory)
      : memory_(memory), producer_(memory), consumer_(memory), tampered_(memory->head != 0 || memory->tail != 0) {}

  void Step(FuzzInput& input) {
    switch (input.Take<uint8_t>() % 8) {
      case 0:
      case 1:
        Push(input);
        break;
      case 2:
      case 3:
        Pop();
        break;
      case 4:
        Tamper(input, memory_->head);
        break;
      case 5:
        Tamper(input, memory_->tail);
        break;
      case 6: {
        tampered_ = true;
        const auto word = input.Take<uint32_t>();
        std::memcpy(memory_->bytes.data() + 4 * input.TakeBelow(kPacketRingBytes / 4), &word, sizeof word);
        break;
      }
      default:
        Wait();
        break;
    }
  }

 private:
  void Tamper(FuzzInput& input, std::atomic<uint32_t>& index) {
    tampered_ = true;
    const auto change = input.Take<int8_t>();
    index = change == 127 ? input.Take<uint32_t>() : index.load() + static_cast<uint32_t>(8 * change);
  }

  void Push(FuzzInput& input) {
    std::vector<std::byte> frame(input.TakeBelow(UINT16_MAX) + input.TakeBelow(64), std::byte{1});
    const auto bytes = input.TakeBytes(16);
    std::copy_n(bytes.begin(), std::min(bytes.size(), frame.size()), frame.begin());
    const iovec piece{frame.data(), frame.size()};
    const auto pushed = producer_.Push(std::span(&piece, 1));
    if (!pushed.ok()) {
      const bool wrong_size = frame.empty() || frame.size() > kMaxRingFrameBytes;
      Require(pushed.error().code == (wrong_size ? EMSGSIZE : EPROTO) && (wrong_size || tampered_));
    } else if (*pushed) {
      sent_.push_back(std::move(frame));
    }
  }

  void Pop() {
    // What lies behind the space must stay as it is.
    static std::vector<std::byte> space(kSpaceBytes);
    const iovec pieces[] = {{space.data(), 100}, {space.data() + 100, kSpaceBytes - 100}};
    const auto popped = consumer_.Pop(pieces);
    if (!popped.ok()) {
      Require(tampered_ && popped.error().code == EPROTO);
      return;
    }
    Require(*popped <= kMaxRingFrameBytes);
    if (tampered_) return;
    Require((*popped != 0) == !sent_.empty());
    if (*popped == 0) return;
    Require(*popped == sent_.front().size());
    Require(std::equal(sent_.front().begin(), sent_.front().begin() + std::min(*popped, kSpaceBytes), space.begin()));
    sent_.pop_front();
  }

  void Wait() {
    const auto congested = producer_.Congested();
    Require(congested.ok() || tampered_);
    (void)consumer_.TakeRoomRequest();
    const bool asleep = consumer_.PrepareToSleep();
    if (!tampered_) Require(asleep == sent_.empty());
    (void)producer_.TakeWakeRequest();
  }

  PacketRingMemory* memory_;
  PacketProducer producer_;
  PacketConsumer consumer_;
  std::deque<std::vector<std::byte>> sent_;
  bool tampered_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto memory = std::make_unique<PacketRingMemory>();
  FuzzInput input(data, size);
  memory->head = memory->tail = memory->producer_waiting = memory->consumer_sleeping = 0;
  if (size % 8 == 7) {
    memory->head = input.Take<uint32_t>();
    memory->tail = memory->head - input.Take<uint16_t>();
  }
  Ring ring(memory.get());
  while (!input.empty()) ring.Step(input);
  return 0;
}
