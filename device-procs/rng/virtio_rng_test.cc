// SPDX-License-Identifier: Apache-2.0
#include "device-procs/rng/virtio_rng.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "device-procs/common/virtio_pci_driver.h"

namespace bulkhead::device {
namespace {

using test::FunctionDriver;
using test::QueueDriver;
using test::Used;

constexpr Gpa kQueueBase{0x1000};
constexpr Gpa kData{0x10'0000};

class VirtioRngTest : public testing::Test {
 protected:
  void SetUp() override {
    driver_.EnableMsix();
    ASSERT_TRUE(driver_.Negotiate(test::kVersion1 | test::kEventIndex));
    driver_.SetUpQueue(0, queue_.layout());
    driver_.GoLive();
    driver_.function().Resume();
  }
  size_t DistinctBytes(Gpa address, size_t size) {
    std::string text = queue_.GetText(address, size);
    std::sort(text.begin(), text.end());
    return static_cast<size_t>(std::unique(text.begin(), text.end()) - text.begin());
  }

  GuestMemory memory_ = test::MakeGuestMemory(16 << 20);
  QueueDriver queue_{memory_, kQueueBase, 16, /*event_index=*/true};
  FunctionDriver driver_{std::make_unique<VirtioRng>(memory_), memory_};
};

TEST_F(VirtioRngTest, FillsABufferAndInterrupts) {
  const uint16_t head = queue_.Add({{kData, 100, true}, {kData + 0x1000, 900, true}});
  driver_.Kick(0);
  EXPECT_EQ(queue_.TakeUsed(), (Used{head, 1000}));
  EXPECT_EQ(driver_.Interrupts(1), 1u);
  // 1000 random bytes with less than 100 different ones do not happen.
  EXPECT_GT(DistinctBytes(kData, 100) + DistinctBytes(kData + 0x1000, 900), 100u);
  EXPECT_EQ(DistinctBytes(kData + 100, 100), 1u) << "nothing beyond the buffer";
}

TEST_F(VirtioRngTest, LargeBufferIsFilledPartly) {
  const uint16_t head = queue_.Add({{kData, 1 << 20, true}});
  driver_.Kick(0);
  EXPECT_EQ(queue_.TakeUsed(), (Used{head, 64 * 1024}));
  EXPECT_EQ(queue_.GetText(kData + 64 * 1024, 1), std::string(1, '\0'));
}

TEST_F(VirtioRngTest, BufferWithoutRoomComesBackEmpty) {
  const uint16_t head = queue_.Add({{kData, 16, false}, {kData, 0, true}});
  driver_.Kick(0);
  EXPECT_EQ(queue_.TakeUsed(), (Used{head, 0}));
}

TEST_F(VirtioRngTest, FullRingIsServedWithOneKick) {
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 16; ++i) queue_.Add({{kData, 8, true}});
    driver_.Kick(0);
    for (int i = 0; i < 16; ++i) EXPECT_TRUE(queue_.TakeUsed()) << round << " " << i;
    driver_.RunPending();
    EXPECT_EQ(queue_.AvailableEvent(), queue_.available_index()) << "kicks are asked for again";
  }
}

TEST_F(VirtioRngTest, BufferOutsideOfMemoryNeedsReset) {
  queue_.Add({{Gpa{uint64_t{1} << 40}, 16, true}});
  driver_.Kick(0);
  EXPECT_EQ(queue_.TakeUsed(), std::nullopt);
  EXPECT_NE(driver_.Status() & test::kNeedsReset, 0);
  EXPECT_EQ(driver_.Interrupts(0), 1u) << "configuration change (§2.1.2)";
}

TEST_F(VirtioRngTest, StateSurvivesARoundTrip) {
  queue_.Add({{kData, 8, true}});
  driver_.Kick(0);
  ASSERT_TRUE(queue_.TakeUsed());
  driver_.function().Pause();
  queue_.Add({{kData, 9, true}});
  queue_.SetUsedEvent(1);
  capnp::MallocMessageBuilder message;
  auto state = message.getRoot<capnp::AnyPointer>();
  driver_.function().Save(state);

  FunctionDriver other(std::make_unique<VirtioRng>(memory_), memory_);
  ASSERT_TRUE(other.function().Restore(state.asReader()).ok());
  EXPECT_EQ(queue_.TakeUsed(), std::nullopt) << "not before it is resumed";
  other.function().Resume();
  auto used = queue_.TakeUsed();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->length, 9u);
  EXPECT_EQ(other.Interrupts(1), 1u);
}

}  // namespace
}  // namespace bulkhead::device
