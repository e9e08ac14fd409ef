// SPDX-License-Identifier: Apache-2.0
#include "ipc/packet_ring.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>

namespace bulkhead {
namespace {

class PacketRing : public testing::Test {
 protected:
  Result<bool> Push(std::string frame) {
    const iovec piece{frame.data(), frame.size()};
    return producer_.Push(std::span(&piece, 1));
  }
  Result<size_t> Pop(size_t space, std::string& frame) {
    frame.assign(space, '\0');
    const iovec piece{frame.data(), frame.size()};
    return consumer_.Pop(std::span(&piece, 1));
  }
  void ExpectPops(const std::string& wanted) {
    std::string frame;
    const auto popped = Pop(kMaxRingFrameBytes, frame);
    ASSERT_TRUE(popped.ok()) << popped.error().message;
    EXPECT_EQ(frame.substr(0, *popped), wanted);
  }
  void ExpectBroken() {
    std::string frame;
    const auto popped = Pop(100, frame);
    EXPECT_TRUE(!popped.ok() && popped.error().code == EPROTO);
  }
  void SetLength(uint32_t at, uint32_t length) { std::memcpy(memory_->bytes.data() + at, &length, sizeof length); }

  std::unique_ptr<PacketRingMemory> memory_ = std::make_unique<PacketRingMemory>();
  PacketProducer producer_{memory_.get()};
  PacketConsumer consumer_{memory_.get()};
};

TEST_F(PacketRing, FramesArriveWholeAndInOrder) {
  EXPECT_TRUE(*Push("one"));
  EXPECT_TRUE(*Push(std::string(kMaxRingFrameBytes, 'x')));
  ExpectPops("one");
  ExpectPops(std::string(kMaxRingFrameBytes, 'x'));
  ExpectPops("");
}

TEST_F(PacketRing, PiecesAreOneFrameOnBothSides) {
  std::string head = "head", tail = "tail";
  const iovec from[] = {{head.data(), 4}, {nullptr, 0}, {tail.data(), 4}};
  EXPECT_TRUE(*producer_.Push(from));
  std::string first(3, 0), second(20, 0);
  const iovec to[] = {{first.data(), first.size()}, {second.data(), second.size()}};
  EXPECT_EQ(*consumer_.Pop(to), 8u);
  EXPECT_EQ(first + second.substr(0, 5), "headtail");
}

TEST_F(PacketRing, AFrameLongerThanTheSpaceLosesItsEndAndNothingElse) {
  EXPECT_TRUE(*Push("longer"));
  EXPECT_TRUE(*Push("next"));
  std::string frame;
  EXPECT_EQ(*Pop(3, frame), 6u);
  EXPECT_EQ(frame, "lon");
  ExpectPops("next");
}

TEST_F(PacketRing, GoesAroundItsEnd) {
  for (unsigned i = 0; i < 20'000; ++i) {
    const std::string frame(1 + i % 1500, static_cast<char>(i));
    ASSERT_TRUE(*Push(frame));
    if (i % 3 != 0) continue;
    for (unsigned old = i < 3 ? 0 : i - 2; old <= i; ++old) {
      ExpectPops(std::string(1 + old % 1500, static_cast<char>(old)));
    }
  }
}

TEST_F(PacketRing, AFullRingTakesNoMore) {
  const std::string frame(60'000, 'x');
  unsigned count = 0;
  while (*Push(frame)) ++count;
  EXPECT_EQ(count, kPacketRingBytes / 60'008);
  EXPECT_TRUE(*producer_.Congested());
  for (; count != 0; --count) ExpectPops(frame);
  EXPECT_FALSE(*producer_.Congested());
}

TEST_F(PacketRing, WhatNoFrameCanBeIsNotTaken) {
  EXPECT_EQ(Push("").error().code, EMSGSIZE);
  EXPECT_EQ(Push(std::string(kMaxRingFrameBytes + 1, 'x')).error().code, EMSGSIZE);
}

TEST_F(PacketRing, ASleeperIsWokenOnce) {
  EXPECT_FALSE(producer_.TakeWakeRequest());
  EXPECT_TRUE(consumer_.PrepareToSleep());
  EXPECT_TRUE(*Push("x"));
  EXPECT_TRUE(producer_.TakeWakeRequest());
  EXPECT_FALSE(producer_.TakeWakeRequest());
  EXPECT_FALSE(consumer_.PrepareToSleep());
  EXPECT_FALSE(producer_.TakeWakeRequest());
}

TEST_F(PacketRing, NobodyIsWokenForNothing) {
  EXPECT_TRUE(*Push("x"));
  EXPECT_FALSE(producer_.TakeWakeRequest());
  ExpectPops("x");
  EXPECT_TRUE(consumer_.PrepareToSleep());
  EXPECT_FALSE(producer_.TakeWakeRequest());
  // One that goes on for another does not know what that one did not come to tell.
  EXPECT_TRUE(PacketProducer(memory_.get()).TakeWakeRequest());
}

TEST_F(PacketRing, WhoWaitsForRoomIsToldWhenHalfIsFree) {
  const std::string frame(60'000, 'x');
  while (*Push(frame)) continue;
  EXPECT_FALSE(consumer_.TakeRoomRequest());
  EXPECT_TRUE(*producer_.Congested());
  ExpectPops(frame);
  EXPECT_FALSE(consumer_.TakeRoomRequest());
  for (unsigned i = 0; i < 4; ++i) ExpectPops(frame);
  EXPECT_TRUE(consumer_.TakeRoomRequest());
  EXPECT_FALSE(consumer_.TakeRoomRequest());
}

TEST_F(PacketRing, ImpossibleIndicesAreABrokenProtocol) {
  memory_->tail = 1;
  EXPECT_EQ(Push("x").error().code, EPROTO);
  EXPECT_EQ(producer_.Congested().error().code, EPROTO);
  memory_->head = kPacketRingBytes + 8;
  ExpectBroken();
  memory_->head = 4;
  ExpectBroken();
  memory_->head = static_cast<uint32_t>(-8);
  ExpectBroken();
}

TEST_F(PacketRing, ImpossibleLengthsAreABrokenProtocol) {
  EXPECT_TRUE(*Push("frame"));
  for (const uint32_t length : {0u, 13u, static_cast<uint32_t>(kMaxRingFrameBytes) + 1, UINT32_MAX}) {
    SetLength(0, length);
    ExpectBroken();
  }
  SetLength(0, 5);
  ExpectPops("frame");
}

TEST_F(PacketRing, TwoThreadsLoseNothing) {
  constexpr unsigned kFrames = 50'000;
  std::thread sender([&] {
    for (unsigned i = 0; i < kFrames;) {
      if (*Push(std::string(4 + i % 1000, static_cast<char>(i)))) ++i;
    }
  });
  for (unsigned i = 0; i < kFrames;) {
    std::string frame;
    const auto popped = Pop(2000, frame);
    ASSERT_TRUE(popped.ok());
    if (*popped == 0) continue;
    ASSERT_EQ(*popped, 4 + i % 1000);
    ASSERT_EQ(frame[*popped - 1], static_cast<char>(i));
    ++i;
  }
  sender.join();
}

TEST(PacketLink, IsSharedAndCannotShrink) {
  const OwnFd file = OrThrow(MakePacketLink("packets-test"));
  EXPECT_NE(::ftruncate(file.get(), 4096), 0);
  PacketLinkMemory* here = OrThrow(MapPacketLink(file.get()));
  PacketLinkMemory* there = OrThrow(MapPacketLink(file.get()));
  PacketProducer producer(&here->to_net);
  PacketConsumer consumer(&there->to_net);
  char byte = 'x';
  const iovec piece{&byte, 1};
  EXPECT_TRUE(*producer.Push(std::span(&piece, 1)));
  byte = 0;
  EXPECT_EQ(*consumer.Pop(std::span(&piece, 1)), 1u);
  EXPECT_EQ(byte, 'x');
}

}  // namespace
}  // namespace bulkhead
