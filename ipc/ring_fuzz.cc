// SPDX-License-Identifier: Apache-2.0
// libFuzzer: both ends of a ring, between which the shared memory is rewritten. As long as it was not, each frame
// arrives, whole and in order; after that each end still comes back, with a frame of a possible size or EPROTO.
#include <deque>
#include <memory>
#include <vector>

#include "ipc/fuzz_input.h"
#include "ipc/ring.h"

namespace {

using namespace bulkhead;
using fuzz::FuzzInput;
using fuzz::Require;

// Long ago: nothing here may wait.
constexpr Deadline kNow{};

class Rings {
 public:
  void Step(FuzzInput& input) {
    switch (input.Take<uint8_t>() % 10) {
      case 0:
      case 1:
        Push(input.TakeBytes(input.Take<uint8_t>()));
        break;
      case 2:
      case 3:
        Pop();
        break;
      case 4:
        memory_->requests.head = Near(input, memory_->requests.head);
        break;
      case 5:
        memory_->requests.tail = Near(input, memory_->requests.tail);
        break;
      case 6:
        tampered_ = true;
        memory_->requests.slots[input.TakeBelow(kRingSlots)].length_bytes = input.Take<uint32_t>();
        break;
      case 7:
        Wait(input.Take<uint8_t>());
        break;
      case 8:
        memory_->requests.producer_waiting = input.Take<uint8_t>();
        memory_->requests.consumer_sleeping = input.Take<uint8_t>();
        break;
      default:
        PoisonChannel(memory_.get());
        tampered_ = true;
        break;
    }
  }

 private:
  uint32_t Near(FuzzInput& input, uint32_t index) {
    tampered_ = true;
    const auto change = input.Take<int8_t>();
    return change == 127 ? input.Take<uint32_t>() : index + static_cast<uint32_t>(change);
  }

  void Push(std::span<const std::byte> bytes) {
    const auto pushed = producer_.Push(bytes, kNow);
    if (bytes.size() > kFrameCapacity) {
      Require(!pushed.ok() && pushed.error().code == EMSGSIZE);
      return;
    }
    if (!tampered_) {
      Require(pushed.ok() == (sent_.size() < kRingSlots));
      if (pushed.ok()) sent_.emplace_back(bytes.begin(), bytes.end());
    }
    if (!pushed.ok()) Require(pushed.error().code == (tampered_ ? pushed.error().code : ETIMEDOUT));
    producer_.WakeFutex();
  }

  void Pop() {
    Frame frame;
    const auto popped = consumer_.Pop(frame);
    if (!popped.ok()) {
      Require(tampered_ && popped.error().code == EPROTO);
      return;
    }
    if (*popped) Require(frame.length_bytes <= kFrameCapacity);
    if (tampered_) return;
    Require(*popped == !sent_.empty());
    if (!*popped) return;
    const std::vector<std::byte>& sent = sent_.front();
    Require(sent.size() == frame.length_bytes && std::equal(sent.begin(), sent.end(), frame.bytes.begin()));
    sent_.pop_front();
  }

  void Wait(uint8_t how) {
    if (how % 2 == 0) {
      const bool asleep = consumer_.PrepareToSleep();
      if (!tampered_) Require(asleep == sent_.empty());
      return;
    }
    AdaptiveSpin spin(0);
    const auto waited = consumer_.WaitFutex(spin, kNow);
    if (!tampered_) Require(waited.ok() == !sent_.empty());
  }

  std::unique_ptr<ChannelMemory> memory_ = std::make_unique<ChannelMemory>();
  RingProducer producer_{&memory_->requests};
  RingConsumer consumer_{&memory_->requests};
  std::deque<std::vector<std::byte>> sent_;
  bool tampered_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  Rings rings;
  while (!input.empty()) rings.Step(input);
  return 0;
}
