// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/exit_server.h"

#include <gtest/gtest.h>

#include <memory>

namespace bulkhead::device {
namespace {

constexpr Deadline kNow{};

// Each write that arrives makes the next one be there, as a vCPU that never stops writing does.
class EndlessDevice final : public DeviceModel {
 public:
  EndlessDevice(RingProducer& requests, unsigned limit) : requests_(requests), limit_(limit) {}

  void Ask() {
    Frame frame;
    EncodeRequest({.width = 1, .kind = exit::Request::Kind::POSTED_WRITE}, frame);
    EXPECT_TRUE(requests_.Push(std::span(frame.bytes).first(frame.length_bytes), kNow).ok());
  }
  uint64_t Read(uint16_t, uint64_t, uint8_t) override { return 0; }
  WriteEffect Write(uint16_t, uint64_t, uint8_t, uint64_t) override {
    if (++writes < limit_) Ask();
    return {};
  }
  void Pause() override {}
  void Resume() override {}
  void Save(capnp::AnyPointer::Builder) const override {}
  Result<void> Restore(capnp::AnyPointer::Reader) override { return {}; }

  unsigned writes = 0;

 private:
  RingProducer& requests_;
  const unsigned limit_;
};

class ExitServerTest : public testing::Test {
 protected:
  static constexpr unsigned kManyWrites = 100'000;

  std::unique_ptr<ChannelMemory> memory_ = std::make_unique<ChannelMemory>();
  RingProducer requests_{&memory_->requests};
  EndlessDevice device_{requests_, kManyWrites};
  Recorder recorder_;
  ExitServer server_{memory_.get(), device_, recorder_,
                     {1},           0,       [](const Error& error) { ADD_FAILURE() << error.message; }};
};

TEST_F(ExitServerTest, GuestThatNeverStopsWritingDoesNotKeepTheLoopInOneRound) {
  device_.Ask();
  server_.Drain();
  EXPECT_GT(device_.writes, 0u);
  EXPECT_LT(device_.writes, kManyWrites);
  EXPECT_FALSE(server_.PrepareToSleep()) << "the rest is not forgotten";
}

TEST_F(ExitServerTest, OtherEventsAreSeenBetweenTheRounds) {
  EventLoop loop;
  loop.SetPoller(&server_);
  device_.Ask();
  // Has to be noticed while there is always another exit.
  loop.Stop();
  loop.Run();
  EXPECT_LT(device_.writes, kManyWrites);
}

}  // namespace
}  // namespace bulkhead::device
