// SPDX-License-Identifier: Apache-2.0
// libFuzzer: the device process's end of the exit channel with a runner that the guest owns: frames of arbitrary bytes,
// requests of arbitrary values, indices that jump. A device is asked nothing outside of its regions, and each request
// that is waited for gets its one answer.
#include <array>
#include <deque>
#include <memory>

#include "device-procs/common/exit_server.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using bulkhead::fuzz::FuzzInput;
using bulkhead::fuzz::Require;

constexpr std::array<uint64_t, 4> kRegionSizes{1, 8, 4096, 0x8000};
constexpr Deadline kNow{};

class CheckingDevice final : public DeviceModel {
 public:
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override {
    Check(region, offset, width);
    return ~offset;
  }
  WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override {
    Check(region, offset, width);
    Require((value & ~AllOnes(width)) == 0);
    WriteEffect effect;
    if ((value & 1) != 0) effect.decode = PciDecode{.memory_enabled = (value & 2) != 0, .bar0_address = value};
    if ((value & 4) != 0) effect.route = MsiRoute{.address = value, .deliver = (value & 8) != 0};
    return effect;
  }
  void Pause() override {}
  void Resume() override {}
  void Save(capnp::AnyPointer::Builder) const override {}
  Result<void> Restore(capnp::AnyPointer::Reader) override { return {}; }

 private:
  static void Check(uint16_t region, uint64_t offset, uint8_t width) {
    Require(region < kRegionSizes.size() && width != 0 && width <= 8 && (width & (width - 1)) == 0);
    Require(offset <= kRegionSizes[region] && width <= kRegionSizes[region] - offset);
  }
};

class Runner {
 public:
  bool broken() const { return broken_; }

  void Step(FuzzInput& input) {
    switch (input.Take<uint8_t>() % 8) {
      case 0:
        Push(input.TakeBytes(input.Take<uint8_t>() % (kFrameCapacity + 1)));
        tampered_ = true;
        break;
      case 1:
        memory_->requests.head += static_cast<uint32_t>(input.Take<int8_t>());
        tampered_ = true;
        break;
      case 2: {
        // Empty or impossible: a ring that is full is waited for, which says nothing and takes a second.
        const uint32_t used = input.Take<uint8_t>() % 64;
        memory_->replies.tail = memory_->replies.head - (used == 0 ? 0 : kRingSlots + used);
        tampered_ = true;
        break;
      }
      case 3:
        memory_->requests.slots[input.TakeBelow(kRingSlots)].length_bytes = input.Take<uint32_t>();
        tampered_ = true;
        break;
      case 4:
        (void)server_.PrepareToSleep();
        break;
      case 5:
        Drain();
        break;
      default:
        Ask(input);
        break;
    }
  }

  void Drain() {
    server_.Drain();
    if (tampered_) {
      // Room again, whatever the replies' consumer is thought to have done.
      memory_->replies.tail = memory_->replies.head.load();
      return;
    }
    for (Frame frame; OrThrow(replies_.Pop(frame));) {
      const ExitReply reply = OrThrow(DecodeReply(frame));
      Require(!waiting_.empty() && waiting_.front().sequence == reply.sequence);
      if (waiting_.front().kind == exit::Request::Kind::READ) {
        Require(reply.data == (~waiting_.front().offset & AllOnes(waiting_.front().width)));
      }
      waiting_.pop_front();
    }
    Require(broken_ || waiting_.empty());
  }

 private:
  void Push(std::span<const std::byte> bytes) { (void)requests_.Push(bytes, kNow).ok(); }

  void Ask(FuzzInput& input) {
    if (memory_->requests.head - memory_->requests.tail >= kRingSlots) return;
    ExitRequest request{.sequence = input.Take<uint32_t>(),
                        .region = input.Take<uint8_t>(),
                        .width = static_cast<uint8_t>(1u << input.Take<uint8_t>() % 4),
                        .kind = static_cast<exit::Request::Kind>(input.Take<uint8_t>() % 3),
                        .offset = input.Take<uint16_t>(),
                        .data = input.Take<uint64_t>()};
    if (input.Take<uint8_t>() == 0) request.offset = ~request.offset;
    Frame frame;
    EncodeRequest(request, frame);
    Push(std::span(frame.bytes).first(frame.length_bytes));
    if (request.kind != exit::Request::Kind::POSTED_WRITE) waiting_.push_back(request);
  }

  std::unique_ptr<ChannelMemory> memory_ = std::make_unique<ChannelMemory>();
  RingProducer requests_{&memory_->requests};
  RingConsumer replies_{&memory_->replies};
  std::deque<ExitRequest> waiting_;
  bool tampered_ = false;
  bool broken_ = false;
  CheckingDevice device_;
  Recorder recorder_;
  ExitServer server_{
      memory_.get(), device_, recorder_, {kRegionSizes.begin(), kRegionSizes.end()}, 0, [this](const Error& error) {
        Require(!broken_ && !error.message.empty());
        broken_ = true;
      }};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  Runner runner;
  // The process ends with the first breach.
  while (!input.empty() && !runner.broken()) runner.Step(input);
  if (!runner.broken()) runner.Drain();
  return 0;
}
