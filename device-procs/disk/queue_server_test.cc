// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_server.h"

#include <gtest/gtest.h>

#include <deque>

#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device {
namespace {

constexpr uint16_t kQueueSize = 8;
constexpr Gpa kHeader{0x10000};
constexpr Gpa kData{0x11000};
constexpr Gpa kStatus{0x12000};
constexpr uint32_t kWrite = 1, kFlush = 4, kZeroes = 13;

// Notes what is asked and completes it when told.
class FakeChannel final : public BlockChannel {
 public:
  void Read(uint64_t, std::span<const iovec>, BlockCompletion& done) override { Note("read", done); }
  void Write(uint64_t, std::span<const iovec>, BlockCompletion& done) override { Note("write", done); }
  void Flush(BlockCompletion& done) override { Note("flush", done); }
  void Discard(uint64_t, uint64_t, BlockCompletion& done) override { Note("discard", done); }
  void WriteZeroes(uint64_t, uint64_t, bool, BlockCompletion& done) override { Note("zeroes", done); }

  void CompleteOne(int error = 0) {
    BlockCompletion* done = outstanding.front();
    outstanding.pop_front();
    done->Completed(error);
  }

  std::vector<std::string> calls;
  std::deque<BlockCompletion*> outstanding;

 private:
  void Note(const char* what, BlockCompletion& done) {
    calls.push_back(what);
    outstanding.push_back(&done);
  }
};

class FakeTransport final : public VirtioTransport {
 public:
  Virtqueue* Queue(uint16_t) override { return nullptr; }
  int KickFd(uint16_t) const override { return -1; }
  void SignalQueue(uint16_t) override { ++interrupts; }
  void SignalConfigChange() override {}
  void MarkNeedsReset() override { needs_reset = true; }

  int interrupts = 0;
  bool needs_reset = false;
};

class QueueServerTest : public testing::Test {
 protected:
  QueueServerTest() { Start(); }
  void Start() {
    server_.Start({.queue = &queue_,
                   .transport = &transport_,
                   .rules = {.capacity_bytes = 1 << 20, .discard = true, .write_zeroes = true},
                   .write_through = &write_through_});
  }
  void Offer(uint32_t type, uint32_t out_bytes) {
    struct {
      uint32_t type, reserved;
      uint64_t sector;
    } header{type, 0, 0};
    driver_.Put(kHeader, header);
    driver_.Put<uint8_t>(kStatus, 0xEE);
    std::vector<test::Buffer> buffers{{kHeader, 16}};
    if (out_bytes != 0) buffers.push_back({kData, out_bytes});
    buffers.push_back({kStatus, 1, true});
    driver_.Add(buffers);
  }
  int Status() { return driver_.Get<uint8_t>(kStatus); }

  const GuestMemory memory_ = test::MakeGuestMemory(1 << 20);
  test::QueueDriver driver_{memory_, Gpa{0}, kQueueSize};
  Virtqueue queue_ = OrThrow(Virtqueue::Create(memory_, driver_.layout()));
  FakeChannel channel_;
  FakeTransport transport_;
  std::atomic<bool> write_through_ = false;
  std::vector<std::string> log_;
  Throttle throttle_;
  QueueServer server_{memory_, channel_, throttle_,
                      "id",    256,      [this](const std::string& line) { log_.push_back(line); }};
};

using Calls = std::vector<std::string>;

TEST_F(QueueServerTest, GivesEachChainBackOnceWhenItsWorkIsDone) {
  Offer(kWrite, 512);
  Offer(kWrite, 512);
  EXPECT_FALSE(server_.TakeChains());
  EXPECT_EQ(server_.in_flight(), 2);
  EXPECT_EQ(driver_.UsedIndex(), 0);
  channel_.CompleteOne();
  channel_.CompleteOne();
  EXPECT_EQ(server_.in_flight(), 0);
  EXPECT_EQ(driver_.UsedIndex(), 2);
  EXPECT_EQ(transport_.interrupts, 0) << "the batch is not over";
  server_.SignalCompletions();
  server_.SignalCompletions();
  EXPECT_EQ(transport_.interrupts, 1);
  EXPECT_EQ(Status(), 0);
}

TEST_F(QueueServerTest, WriteWithoutCacheIsFlushedBeforeItIsGivenBack) {
  write_through_ = true;
  Offer(kWrite, 512);
  server_.TakeChains();
  channel_.CompleteOne();
  EXPECT_EQ(channel_.calls, (Calls{"write", "flush"}));
  EXPECT_EQ(driver_.UsedIndex(), 0);
  channel_.CompleteOne();
  EXPECT_EQ(driver_.UsedIndex(), 1);
}

TEST_F(QueueServerTest, FailedFlushFailsTheWriteThatNeededIt) {
  write_through_ = true;
  Offer(kWrite, 512);
  server_.TakeChains();
  channel_.CompleteOne();
  channel_.CompleteOne(EIO);
  EXPECT_EQ(Status(), 1);
  EXPECT_EQ(log_.size(), 1u);
}

TEST_F(QueueServerTest, SegmentsFollowEachOther) {
  struct {
    uint64_t sector;
    uint32_t count, flags;
  } segments[] = {{0, 1, 0}, {8, 1, 0}, {16, 1, 0}};
  driver_.Put(kData, segments);
  Offer(kZeroes, sizeof segments);
  server_.TakeChains();
  for (unsigned done = 1; done <= 3; ++done) {
    EXPECT_EQ(channel_.calls.size(), done);
    EXPECT_EQ(driver_.UsedIndex(), 0);
    channel_.CompleteOne();
  }
  EXPECT_EQ(driver_.UsedIndex(), 1);
  Offer(kZeroes, sizeof segments);
  server_.TakeChains();
  channel_.CompleteOne(EIO);
  EXPECT_EQ(channel_.calls.size(), 4u) << "nothing follows a failure";
  EXPECT_EQ(Status(), 1);
}

TEST_F(QueueServerTest, AbandonedRequestStartsNoFurtherSegment) {
  struct {
    uint64_t sector;
    uint32_t count, flags;
  } segments[] = {{0, 1, 0}, {8, 1, 0}};
  driver_.Put(kData, segments);
  Offer(kZeroes, sizeof segments);
  server_.TakeChains();
  server_.Abandon();
  channel_.CompleteOne();
  EXPECT_EQ(channel_.calls, (Calls{"zeroes"}));
  EXPECT_EQ(server_.in_flight(), 0);
}

TEST_F(QueueServerTest, FailureIsNamedInTheLog) {
  Offer(kFlush, 0);
  server_.TakeChains();
  channel_.CompleteOne(ENOSPC);
  EXPECT_EQ(Status(), 1);
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_NE(log_[0].find("flush failed: No space left on device"), std::string::npos) << log_[0];
}

TEST_F(QueueServerTest, NoMoreIsInFlightThanTheQueueHolds) {
  for (int i = 0; i < 2; ++i) Offer(kFlush, 0);
  // A driver that offers heads again that it has not got back.
  for (int i = 0; i < 6; ++i) driver_.Offer(0);
  server_.TakeChains();
  for (int i = 0; i < 4; ++i) driver_.Offer(0);
  EXPECT_FALSE(server_.TakeChains());
  EXPECT_EQ(server_.in_flight(), kQueueSize);
  channel_.CompleteOne();
  server_.TakeChains();
  EXPECT_EQ(server_.in_flight(), kQueueSize);
  while (!channel_.outstanding.empty()) channel_.CompleteOne();
  server_.TakeChains();
  while (!channel_.outstanding.empty()) channel_.CompleteOne();
  EXPECT_EQ(driver_.UsedIndex(), 12);
}

TEST_F(QueueServerTest, EndlessInstantRequestsLeaveTheThreadTimeForOthers) {
  for (int i = 0; i < kQueueSize; ++i) Offer(0xFF, 0);
  EXPECT_TRUE(server_.TakeChains()) << "comes back for more, instead of staying";
  EXPECT_FALSE(server_.TakeChains());
}

TEST_F(QueueServerTest, BrokenQueueAsksForResetAndFinishesWhatItHas) {
  Offer(kFlush, 0);
  server_.TakeChains();
  driver_.SetAvailableIndex(1000);
  EXPECT_FALSE(server_.TakeChains());
  EXPECT_TRUE(transport_.needs_reset);
  channel_.CompleteOne();
  EXPECT_EQ(server_.in_flight(), 0);
  EXPECT_FALSE(server_.TakeChains());
  EXPECT_EQ(channel_.calls, (Calls{"flush"}));
}

TEST_F(QueueServerTest, KicksAreWantedWhenTheQueueIsEmpty) {
  Offer(kFlush, 0);
  server_.TakeChains();
  EXPECT_EQ(driver_.UsedFlags(), 0) << "VIRTQ_USED_F_NO_NOTIFY is off again";
}

}  // namespace
}  // namespace bulkhead::device
