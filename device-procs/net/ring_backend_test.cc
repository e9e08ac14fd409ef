// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/ring_backend.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string>

#include "ipc/packet_ring.h"

namespace bulkhead::device {
namespace {

// Whether the eventfd was signalled since the last look.
bool TakeSignal(const OwnFd& event) {
  pollfd look{.fd = event.get(), .events = POLLIN, .revents = 0};
  if (::poll(&look, 1, 0) != 1) return false;
  DrainEventFd(event.get());
  return true;
}

class RingBackend : public testing::Test {
 protected:
  RingBackend() {
    OwnFd file = OrThrow(MakePacketLink("test"));
    memory_ = OrThrow(MapPacketLink(file.get()));
    backend_ =
        MakeRingBackend({std::move(file), OrThrow(DuplicateFd(doorbell_.get())), OrThrow(DuplicateFd(peer_.get()))});
  }

  Result<void> Send(size_t frame_bytes) {
    std::string packet(sizeof(PacketHeader) + frame_bytes, 'x');
    const iovec piece{packet.data(), packet.size()};
    return backend_->port(0).Send(std::span(&piece, 1));
  }
  // The outside takes a frame; its size.
  size_t Take() {
    std::string frame(kMaxRingFrameBytes, '\0');
    const iovec piece{frame.data(), frame.size()};
    PacketConsumer& outside = outside_.emplace(&memory_->to_outside);
    const size_t bytes = OrThrow(outside.Pop(std::span(&piece, 1)));
    if (outside.TakeRoomRequest()) SignalEventFd(doorbell_.get());
    return bytes;
  }
  bool Sleep() { return outside_.emplace(&memory_->to_outside).PrepareToSleep(); }

  const OwnFd doorbell_ = OrThrow(MakeEventFd());
  const OwnFd peer_ = OrThrow(MakeEventFd());
  PacketLinkMemory* memory_ = nullptr;
  std::unique_ptr<NetBackend> backend_;
  std::optional<PacketConsumer> outside_;
};

TEST_F(RingBackend, TheOutsideIsWokenOnceForABatch) {
  ASSERT_TRUE(Sleep());
  EXPECT_TRUE(Send(60).ok());
  EXPECT_TRUE(Send(60).ok());
  EXPECT_FALSE(TakeSignal(peer_));
  backend_->port(0).Flush();
  EXPECT_TRUE(TakeSignal(peer_));
  EXPECT_EQ(Take(), 60u);
  EXPECT_EQ(Take(), 60u);
  ASSERT_TRUE(Sleep());
  backend_->port(0).Flush();
  EXPECT_FALSE(TakeSignal(peer_)) << "nothing was sent";
}

TEST_F(RingBackend, WhoFindsNoRoomIsToldWhenThereIs) {
  constexpr size_t kFrameBytes = 60'000;
  size_t sent = 0;
  Result<void> result;
  while ((result = Send(kFrameBytes)).ok()) ++sent;
  EXPECT_EQ(result.error().code, EAGAIN);
  EXPECT_EQ(sent, kPacketRingBytes / (kFrameBytes + 8));
  size_t taken = 0;
  while (!TakeSignal(doorbell_) && Take() == kFrameBytes) ++taken;
  EXPECT_GT(taken, sent / 2 - 1);
  EXPECT_LT(taken, sent);
  EXPECT_TRUE(Send(kFrameBytes).ok());
}

TEST_F(RingBackend, AnOutsideThatBreaksTheRingIsGone) {
  memory_->to_outside.tail.store(5);
  EXPECT_EQ(Send(60).error().code, ENODEV);
}

}  // namespace
}  // namespace bulkhead::device
