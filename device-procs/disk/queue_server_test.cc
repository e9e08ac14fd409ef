// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/queue_server.h"

#include <gtest/gtest.h>

#include <deque>

#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device {
namespace {

constexpr uint16_t kQueueSize = 16;
constexpr Gpa kHeader{0x10000};
constexpr Gpa kData{0x11000};
constexpr Gpa kStatus{0x12000};
constexpr uint32_t kRead = 0, kWrite = 1, kFlush = 4, kZeroes = 13;

// Notes what is asked and completes it when told.
class FakeChannel final : public BlockChannel {
 public:
  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    Note("read " + Extent(offset, to), done);
  }
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
    Note("write " + Extent(offset, from), done);
  }
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
  static std::string Extent(uint64_t offset, std::span<const iovec> vectors) {
    uint64_t size = 0;
    for (const iovec& vector : vectors) size += vector.iov_len;
    return std::to_string(offset) + "+" + std::to_string(size);
  }
  void Note(std::string what, BlockCompletion& done) {
    calls.push_back(std::move(what));
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
  EXPECT_EQ(channel_.calls, (Calls{"write 0+512", "flush"}));
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
  for (int i = 2; i < kQueueSize; ++i) driver_.Offer(0);
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
  EXPECT_EQ(driver_.UsedIndex(), kQueueSize + 4);
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
  EXPECT_EQ(driver_.UsedFlags(), 1) << "who looks out for chains needs none";
  EXPECT_FALSE(server_.EnableKicks());
  EXPECT_EQ(driver_.UsedFlags(), 0) << "VIRTQ_USED_F_NO_NOTIFY is off again";
  Offer(kFlush, 0);
  EXPECT_TRUE(server_.HasChains());
  EXPECT_TRUE(server_.EnableKicks()) << "a chain came before the kick was asked for";
}

TEST_F(QueueServerTest, FullServerAsksForNoKicks) {
  for (int i = 0; i < kQueueSize; ++i) Offer(kFlush, 0);
  server_.TakeChains();
  for (int i = 0; i < kQueueSize; ++i) driver_.Offer(0);
  EXPECT_FALSE(server_.HasChains()) << "none could be taken";
  EXPECT_FALSE(server_.EnableKicks());
  EXPECT_EQ(driver_.UsedFlags(), 1);
}

// Chains whose requests lie where and how the test wants them, each with a status of its own.
class QueueServerRunTest : public QueueServerTest {
 protected:
  void OfferAt(uint32_t type, uint64_t sector, uint32_t bytes) {
    const uint64_t number = offered_++;
    struct {
      uint32_t type, reserved;
      uint64_t sector;
    } header{type, 0, sector};
    const Gpa at{kHeader.value + 16 * number};
    driver_.Put(at, header);
    driver_.Put<uint8_t>(StatusAt(number), 0xEE);
    std::vector<test::Buffer> buffers{{at, 16}};
    if (bytes != 0) buffers.push_back({kData, bytes, type == kRead});
    buffers.push_back({StatusAt(number), 1, true});
    driver_.Add(buffers);
  }
  int StatusOf(uint64_t number) { return driver_.Get<uint8_t>(StatusAt(number)); }

 private:
  static Gpa StatusAt(uint64_t number) { return Gpa{kStatus.value + number}; }

  uint64_t offered_ = 0;
};

TEST_F(QueueServerRunTest, NeighboursOfABatchAreOneTransfer) {
  OfferAt(kWrite, 8, 4096);
  OfferAt(kWrite, 16, 4096);
  server_.TakeChains();
  EXPECT_EQ(channel_.calls, (Calls{"write 4096+8192"}));
  channel_.CompleteOne();
  EXPECT_EQ(driver_.UsedIndex(), 2);
  EXPECT_EQ(StatusOf(0), 0);
  EXPECT_EQ(StatusOf(1), 0);
  OfferAt(kWrite, 24, 4096);
  server_.TakeChains();
  EXPECT_EQ(channel_.calls.back(), "write 12288+4096") << "nothing is kept for the next batch";
}

TEST_F(QueueServerRunTest, OnlyNeighboursOfTheSameKindAreGathered) {
  OfferAt(kWrite, 0, 512);
  OfferAt(kRead, 1, 512);
  OfferAt(kRead, 3, 512);
  OfferAt(kRead, 3, 512);
  OfferAt(kFlush, 0, 0);
  server_.TakeChains();
  EXPECT_EQ(channel_.calls, (Calls{"write 0+512", "read 512+512", "read 1536+512", "read 1536+512", "flush"}))
      << "in the driver's order";
}

TEST_F(QueueServerRunTest, AFailedTransferOfManyIsTriedOneByOne) {
  for (uint64_t i = 0; i < 3; ++i) OfferAt(kWrite, i, 512);
  server_.TakeChains();
  channel_.CompleteOne(EIO);
  EXPECT_EQ(channel_.calls, (Calls{"write 0+1536", "write 0+512", "write 512+512", "write 1024+512"}));
  EXPECT_EQ(driver_.UsedIndex(), 0);
  EXPECT_TRUE(log_.empty());
  channel_.CompleteOne();
  channel_.CompleteOne(EIO);
  channel_.CompleteOne();
  EXPECT_EQ(StatusOf(0), 0);
  EXPECT_EQ(StatusOf(1), 1);
  EXPECT_EQ(StatusOf(2), 0);
  EXPECT_EQ(log_.size(), 1u);
  EXPECT_EQ(driver_.UsedIndex(), 3);
}

TEST_F(QueueServerRunTest, AnAbandonedTransferOfManyIsNotTriedAgain) {
  OfferAt(kWrite, 0, 512);
  OfferAt(kWrite, 1, 512);
  server_.TakeChains();
  server_.Abandon();
  channel_.CompleteOne(EIO);
  EXPECT_EQ(channel_.calls.size(), 1u);
  EXPECT_EQ(StatusOf(0), 1);
  EXPECT_EQ(StatusOf(1), 1);
  EXPECT_EQ(server_.in_flight(), 0);
}

TEST_F(QueueServerRunTest, OneFlushServesAllOfATransfer) {
  write_through_ = true;
  OfferAt(kWrite, 0, 512);
  OfferAt(kWrite, 1, 512);
  server_.TakeChains();
  channel_.CompleteOne();
  EXPECT_EQ(channel_.calls, (Calls{"write 0+1024", "flush"}));
  channel_.CompleteOne(EIO);
  EXPECT_EQ(StatusOf(0), 1);
  EXPECT_EQ(StatusOf(1), 1);
}

TEST_F(QueueServerRunTest, ATransferHasASizeBeyondWhichTheNextBegins) {
  constexpr uint32_t kBytes = 96 * 1024;
  for (uint64_t i = 0; i < 3; ++i) OfferAt(kWrite, i * kBytes / 512, kBytes);
  server_.TakeChains();
  EXPECT_EQ(channel_.calls, (Calls{"write 0+196608", "write 196608+98304"}));
}

}  // namespace
}  // namespace bulkhead::device
