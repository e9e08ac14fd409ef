// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/virtqueue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device {
namespace {

using test::Buffer;
using test::QueueDriver;
using test::Used;

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr Gpa kQueueBase{0x1000};
constexpr Gpa kData{0x8000};
constexpr Gpa kTable{0x6000};

class VirtqueueTest : public testing::Test {
 protected:
  void Make(uint16_t size, bool event_index = false) {
    driver_ = std::make_unique<QueueDriver>(memory_, kQueueBase, size, event_index);
    auto queue = Virtqueue::Create(memory_, driver_->layout());
    ASSERT_TRUE(queue.ok()) << queue.error().message;
    queue_ = *std::move(queue);
  }
  bool Popped() {
    auto popped = queue_->Pop(chain_);
    EXPECT_TRUE(popped.ok());
    return popped.ok() && *popped;
  }
  // Offers descriptor 0 as it stands; true if the queue calls the driver broken, and goes on doing so.
  bool BreaksQueue() {
    driver_->Offer(0);
    const bool broken = !queue_->Pop(chain_).ok();
    EXPECT_EQ(queue_->Pop(chain_).ok(), !broken);
    return broken;
  }
  void Finish() {
    auto pushed = queue_->Push(chain_.head, 0);
    EXPECT_TRUE(pushed.ok());
  }

  GuestMemory memory_ = test::MakeGuestMemory(kMemoryBytes);
  std::unique_ptr<QueueDriver> driver_;
  std::optional<Virtqueue> queue_;
  Chain chain_;
};

TEST_F(VirtqueueTest, RefusesLayoutsThatTheSpecificationForbids) {
  const QueueLayout good = QueueDriver(memory_, kQueueBase, 8).layout();
  ASSERT_TRUE(Virtqueue::Create(memory_, good).ok());
  const auto refused = [&](auto change) {
    QueueLayout bad = good;
    change(bad);
    return !Virtqueue::Create(memory_, bad).ok();
  };
  EXPECT_TRUE(refused([](QueueLayout& l) { l.size = 0; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.size = 6; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.descriptors = l.descriptors + 8; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.available = l.available + 1; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.used = l.used + 2; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.descriptors = Gpa{kMemoryBytes - 16 * 8 + 16}; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.available = Gpa{kMemoryBytes - 6 - 2 * 8 + 2}; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.used = Gpa{kMemoryBytes - 6 - 8 * 8 + 2}; }));
  EXPECT_TRUE(refused([](QueueLayout& l) { l.descriptors = Gpa{~uint64_t{0} - 15}; }));
}

TEST_F(VirtqueueTest, LayoutMayEndWithMemory) {
  QueueLayout layout{.size = 8,
                     .descriptors = Gpa{kMemoryBytes - 16 * 8},
                     .available = Gpa{0x1000},
                     .used = Gpa{0x2000},
                     .event_index = false};
  EXPECT_TRUE(Virtqueue::Create(memory_, layout).ok());
}

TEST_F(VirtqueueTest, EmptyQueueGivesNothing) {
  Make(8);
  EXPECT_FALSE(Popped());
}

TEST_F(VirtqueueTest, ChainIsSplitIntoReadableAndWritable) {
  Make(8);
  const uint16_t head = driver_->Add(
      {{kData, 16, false}, {kData + 0x100, 32, false}, {kData + 0x200, 64, true}, {kData + 0x300, 1, true}});
  ASSERT_TRUE(Popped());
  EXPECT_EQ(chain_.head, head);
  ASSERT_EQ(chain_.readable.size(), 2u);
  ASSERT_EQ(chain_.writable.size(), 2u);
  EXPECT_EQ(chain_.readable[1].address, kData + 0x100);
  EXPECT_EQ(chain_.readable[1].length_bytes, 32u);
  EXPECT_EQ(chain_.writable[0].address, kData + 0x200);
  EXPECT_EQ(TotalBytes(chain_.writable), 65u);
  EXPECT_FALSE(Popped());
}

TEST_F(VirtqueueTest, ChainsMayComeBackInAnyOrder) {
  Make(8);
  const uint16_t first = driver_->Add({{kData, 16, true}});
  const uint16_t second = driver_->Add({{kData, 16, true}});
  ASSERT_TRUE(Popped());
  ASSERT_TRUE(Popped());
  ASSERT_TRUE(queue_->Push(second, 7).ok());
  ASSERT_TRUE(queue_->Push(first, 9).ok());
  EXPECT_EQ(driver_->TakeUsed(), (Used{second, 7}));
  EXPECT_EQ(driver_->TakeUsed(), (Used{first, 9}));
  EXPECT_EQ(driver_->TakeUsed(), std::nullopt);
}

TEST_F(VirtqueueTest, RingsAndIndicesWrapAround) {
  Make(4);
  for (uint32_t i = 0; i < 0x1'0010; ++i) {
    const uint16_t head = driver_->Add({{kData, i + 1, true}});
    ASSERT_TRUE(Popped()) << i;
    ASSERT_EQ(chain_.writable.at(0).length_bytes, i + 1);
    ASSERT_TRUE(queue_->Push(chain_.head, i).ok());
    ASSERT_EQ(driver_->TakeUsed(), (Used{head, i}));
  }
}

TEST_F(VirtqueueTest, UndoPopGivesTheSameChainAgain) {
  Make(4);
  driver_->Add({{kData, 1, false}});
  driver_->Add({{kData, 2, false}});
  ASSERT_TRUE(Popped());
  ASSERT_TRUE(queue_->Push(chain_.head, 0).ok());
  ASSERT_TRUE(Popped());
  queue_->UndoPop();
  EXPECT_EQ(queue_->position().next_available, 1);
  ASSERT_TRUE(Popped());
  EXPECT_EQ(TotalBytes(chain_.readable), 2u);
  EXPECT_FALSE(Popped());
}

TEST_F(VirtqueueTest, UndoPopTakesBackAllThatAreOut) {
  Make(8);
  for (uint64_t i = 0; i < 3; ++i) driver_->Add({{kData + 64 * i, 16}});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Popped());
  queue_->UndoPop(3);
  for (uint64_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(Popped());
    EXPECT_EQ(chain_.readable.at(0).address, kData + 64 * i);
  }
  EXPECT_FALSE(Popped());
}

TEST_F(VirtqueueTest, ChainsGivenBackTogetherKeepTheirOrderAcrossTheRingsEnd) {
  Make(4);
  for (int round = 0; round < 3; ++round) {
    const uint16_t first = driver_->Add({{kData, 16, true}}), second = driver_->Add({{kData + 64, 16, true}});
    ASSERT_TRUE(Popped() && Popped());
    const UsedChain chains[] = {{first, 16}, {second, 7}};
    ASSERT_TRUE(queue_->Push(chains).ok());
    EXPECT_EQ(driver_->TakeUsed(), (Used{first, 16}));
    EXPECT_EQ(driver_->TakeUsed(), (Used{second, 7}));
    EXPECT_EQ(driver_->TakeUsed(), std::nullopt);
  }
}

TEST_F(VirtqueueTest, GoesOnFromASavedPosition) {
  Make(4);
  driver_->Add({{kData, 1, false}});
  driver_->Add({{kData, 2, false}});
  ASSERT_TRUE(Popped());
  Finish();
  const QueuePosition saved = queue_->position();
  queue_ = OrThrow(Virtqueue::Create(memory_, driver_->layout(), saved));
  ASSERT_TRUE(Popped());
  EXPECT_EQ(TotalBytes(chain_.readable), 2u);
  Finish();
  EXPECT_EQ(driver_->UsedIndex(), 2);
  EXPECT_FALSE(Popped());
}

TEST_F(VirtqueueTest, IndirectTableStandsForItsEntries) {
  Make(4);
  driver_->SetDescriptor(
      0, driver_->MakeTable(
             kTable, {{kData.value, 10, test::kNext, 2}, {0xDEAD, 1, 0, 0}, {kData.value + 64, 20, test::kWrite, 0}}));
  driver_->Offer(0);
  ASSERT_TRUE(Popped());
  ASSERT_EQ(chain_.readable.size(), 1u);
  ASSERT_EQ(chain_.writable.size(), 1u);
  EXPECT_EQ(chain_.writable[0].address, kData + 64);
}

TEST_F(VirtqueueTest, IndirectTableMayFollowDirectDescriptors) {
  Make(4);
  driver_->SetDescriptor(0, {kData.value, 1, test::kNext, 1});
  driver_->SetDescriptor(1, driver_->MakeTable(kTable, {{kData.value, 2, test::kWrite, 0}}));
  driver_->Offer(0);
  ASSERT_TRUE(Popped());
  EXPECT_EQ(TotalBytes(chain_.readable), 1u);
  EXPECT_EQ(TotalBytes(chain_.writable), 2u);
}

TEST_F(VirtqueueTest, ChainAsLongAsTheQueueIsTaken) {
  Make(4);
  driver_->Add(std::vector<Buffer>(4, Buffer{kData, 1, false}));
  EXPECT_TRUE(Popped());
  EXPECT_EQ(chain_.readable.size(), 4u);
}

// Hostile drivers.

TEST_F(VirtqueueTest, LoopBreaksTheQueue) {
  Make(4);
  driver_->SetDescriptor(0, {kData.value, 1, test::kNext, 1});
  driver_->SetDescriptor(1, {kData.value, 1, test::kNext, 0});
  EXPECT_TRUE(BreaksQueue());
}

TEST_F(VirtqueueTest, NextBeyondTheTableBreaksTheQueue) {
  Make(4);
  driver_->SetDescriptor(0, {kData.value, 1, test::kNext, 4});
  EXPECT_TRUE(BreaksQueue());
}

TEST_F(VirtqueueTest, HeadBeyondTheTableBreaksTheQueue) {
  Make(4);
  driver_->Offer(4);
  EXPECT_FALSE(queue_->Pop(chain_).ok());
}

TEST_F(VirtqueueTest, AvailableIndexTooFarAheadBreaksTheQueue) {
  Make(4);
  driver_->SetAvailableIndex(5);
  EXPECT_FALSE(queue_->Pop(chain_).ok());
  auto more = queue_->EnableKicks();
  EXPECT_FALSE(more.ok());
}

TEST_F(VirtqueueTest, AvailableIndexGoingBackBreaksTheQueue) {
  Make(4);
  driver_->Add({{kData, 1, false}});
  ASSERT_TRUE(Popped());
  driver_->SetAvailableIndex(0);
  EXPECT_FALSE(queue_->Pop(chain_).ok());
}

TEST_F(VirtqueueTest, ReadableAfterWritableBreaksTheQueue) {
  Make(4);
  driver_->SetDescriptor(0, {kData.value, 1, test::kNext | test::kWrite, 1});
  driver_->SetDescriptor(1, {kData.value, 1, 0, 0});
  EXPECT_TRUE(BreaksQueue());
}

TEST_F(VirtqueueTest, DescriptorThatWrapsAroundBreaksTheQueue) {
  Make(4);
  driver_->SetDescriptor(0, {~uint64_t{0} - 1, 4, 0, 0});
  EXPECT_TRUE(BreaksQueue());
}

TEST_F(VirtqueueTest, BadIndirectTablesBreakTheQueue) {
  const auto breaks = [&](test::RawDescriptor descriptor) {
    Make(4);
    driver_->SetAvailableIndex(0);
    driver_->SetDescriptor(0, descriptor);
    return BreaksQueue();
  };
  Make(4);
  const auto one = driver_->MakeTable(kTable, {{kData.value, 1, 0, 0}});
  EXPECT_FALSE(breaks(one)) << "the one that the others are made from";
  auto with = [](test::RawDescriptor descriptor, auto change) {
    change(descriptor);
    return descriptor;
  };
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.length = 0; })));
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.length = 17; })));
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.flags |= test::kNext; })));
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.address = kMemoryBytes; })));
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.address = kMemoryBytes - 16, d.length = 32; })));
  EXPECT_TRUE(breaks(with(one, [](auto& d) { d.address = ~uint64_t{0} - 15, d.length = 32; })));
  EXPECT_TRUE(breaks(driver_->MakeTable(kTable, {{kTable.value, 16, test::kIndirect, 0}}))) << "nested";
  EXPECT_TRUE(breaks(driver_->MakeTable(kTable, {{kData.value, 1, test::kNext, 1}}))) << "next beyond the table";
  EXPECT_TRUE(breaks(driver_->MakeTable(kTable, {{kData.value, 1, test::kNext, 0}}))) << "loop";
}

TEST_F(VirtqueueTest, IndirectChainLongerThanTheQueueBreaksIt) {
  Make(2);
  const auto at = [](uint16_t next) { return test::RawDescriptor{kData.value, 1, test::kNext, next}; };
  driver_->SetDescriptor(0, driver_->MakeTable(kTable, {at(1), at(2), {kData.value, 1, 0, 0}}));
  EXPECT_TRUE(BreaksQueue());
}

TEST_F(VirtqueueTest, DescriptorOutsideOfMemoryFailsOnlyWhenUsed) {
  Make(4);
  driver_->Add({{Gpa{kMemoryBytes - 4}, 8, false}});
  ASSERT_TRUE(Popped());
  std::array<std::byte, 8> bytes;
  EXPECT_FALSE(ReadPieces(memory_, chain_.readable, 0, bytes).ok());
  EXPECT_TRUE(ReadPieces(memory_, chain_.readable, 0, std::span(bytes).first(4)).ok());
  std::vector<iovec> vectors;
  EXPECT_FALSE(TranslatePieces(memory_, chain_.readable, 0, 8, vectors).ok());
}

// Notification suppression.

TEST_F(VirtqueueTest, InterruptsFollowTheFlagWithoutEventIndex) {
  Make(4);
  driver_->Add({{kData, 1, true}});
  EXPECT_FALSE(*queue_->NeedsInterrupt()) << "nothing was used";
  ASSERT_TRUE(Popped());
  Finish();
  EXPECT_TRUE(*queue_->NeedsInterrupt());
  EXPECT_FALSE(*queue_->NeedsInterrupt()) << "once for each batch";
  driver_->SetAvailableFlags(1);
  driver_->Add({{kData, 1, true}});
  ASSERT_TRUE(Popped());
  Finish();
  EXPECT_FALSE(*queue_->NeedsInterrupt());
}

TEST_F(VirtqueueTest, InterruptComesWhenTheUsedIndexPassesTheEvent) {
  Make(8, /*event_index=*/true);
  driver_->SetAvailableFlags(1);  // has no meaning with an event index
  driver_->SetUsedEvent(2);
  for (int i = 0; i < 5; ++i) driver_->Add({{kData, 1, true}});
  std::vector<bool> wanted;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Popped());
    Finish();
    wanted.push_back(*queue_->NeedsInterrupt());
  }
  EXPECT_EQ(wanted, (std::vector<bool>{false, false, true, false, false}));
}

TEST_F(VirtqueueTest, InterruptEventInsideABatchIsNotMissed) {
  Make(8, /*event_index=*/true);
  driver_->SetUsedEvent(1);
  for (int i = 0; i < 4; ++i) {
    driver_->Add({{kData, 1, true}});
    ASSERT_TRUE(Popped());
    Finish();
  }
  EXPECT_TRUE(*queue_->NeedsInterrupt());
}

TEST_F(VirtqueueTest, KickWishIsWrittenAsFlagOrEvent) {
  Make(4);
  ASSERT_TRUE(queue_->DisableKicks().ok());
  EXPECT_EQ(driver_->UsedFlags(), 1);
  EXPECT_FALSE(*queue_->EnableKicks());
  EXPECT_EQ(driver_->UsedFlags(), 0);

  Make(4, /*event_index=*/true);
  driver_->SetAvailableIndex(0);
  driver_->Add({{kData, 1, true}});
  ASSERT_TRUE(Popped());
  EXPECT_FALSE(*queue_->EnableKicks());
  EXPECT_EQ(driver_->AvailableEvent(), 1);
}

TEST_F(VirtqueueTest, EnableKicksSeesWhatCameMeanwhile) {
  Make(4);
  ASSERT_TRUE(queue_->DisableKicks().ok());
  driver_->Add({{kData, 1, true}});
  EXPECT_TRUE(*queue_->EnableKicks());
  EXPECT_TRUE(*queue_->PopOrEnableKicks(chain_));
  EXPECT_FALSE(*queue_->PopOrEnableKicks(chain_));
}

// Pieces.

class PiecesTest : public testing::Test {
 protected:
  GuestMemory memory_ = test::MakeGuestMemory(kMemoryBytes);
  // Ten bytes in three parts, with empty pieces at addresses that are no memory.
  std::vector<Piece> pieces_{{Gpa{0x100}, 3}, {Gpa{~uint64_t{0}}, 0}, {Gpa{0x1FFE}, 4}, {Gpa{0x50}, 3}};
};

TEST_F(PiecesTest, CopiesAnyRangeAcrossPieces) {
  std::array<std::byte, 10> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i + 1);
  ASSERT_TRUE(WritePieces(memory_, pieces_, 0, bytes).ok());
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint8_t>(Gpa{0x102})), 3);
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint8_t>(Gpa{0x1FFE})), 4);
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint8_t>(Gpa{0x52})), 10);
  for (size_t offset = 0; offset <= 10; ++offset) {
    for (size_t size = 0; size <= 10 - offset; ++size) {
      std::vector<std::byte> got(size);
      ASSERT_TRUE(ReadPieces(memory_, pieces_, offset, got).ok());
      ASSERT_TRUE(std::equal(got.begin(), got.end(), bytes.begin() + static_cast<ptrdiff_t>(offset)))
          << offset << "+" << size;
    }
  }
}

TEST_F(PiecesTest, RangeBeyondTheEndIsAnError) {
  std::array<std::byte, 10> bytes{};
  EXPECT_FALSE(ReadPieces(memory_, pieces_, 1, bytes).ok());
  EXPECT_FALSE(WritePieces(memory_, pieces_, 11, std::span(bytes).first(1)).ok());
  std::vector<iovec> vectors;
  EXPECT_FALSE(TranslatePieces(memory_, pieces_, 8, 3, vectors).ok());
}

TEST_F(PiecesTest, TranslationNamesTheSameBytes) {
  std::vector<iovec> vectors;
  ASSERT_TRUE(TranslatePieces(memory_, pieces_, 2, 6, vectors).ok());
  ASSERT_EQ(vectors.size(), 3u);
  EXPECT_EQ(vectors[0].iov_len, 1u);
  EXPECT_EQ(vectors[1].iov_len, 4u);
  EXPECT_EQ(vectors[2].iov_len, 1u);
  std::memset(vectors[1].iov_base, 0x5A, vectors[1].iov_len);
  EXPECT_EQ(OrThrow(memory_.ReadObject<uint32_t>(Gpa{0x1FFE})), 0x5A5A5A5Au);
}

// The kernel is told of a queue in addresses of this process.
TEST(Virtqueue, LiesWhereGuestMemoryIsMapped) {
  const GuestMemory memory = test::MakeGuestMemory(1 << 20);
  const test::QueueDriver driver(memory, Gpa{0x3000}, 8);
  const QueueAddresses found = OrThrow(OrThrow(Virtqueue::Create(memory, driver.layout())).Addresses());
  std::byte* const base = memory.mappings()[0].host;
  EXPECT_EQ(found.descriptors, base + 0x3000);
  EXPECT_EQ(found.available, base + driver.layout().available.value);
  EXPECT_EQ(found.used, base + driver.layout().used.value);
}

TEST(Virtqueue, OneThatLiesInTwoRegionsIsInNoOnePiece) {
  const OwnFd file = OrThrow(MakeSealedMemory("test-guest", 0x4000));
  const std::array regions{MemoryRegion{Gpa{0}, 0x2000, 0x2000}, MemoryRegion{Gpa{0x2000}, 0x2000, 0}};
  const GuestMemory memory = OrThrow(GuestMemory::Map(file.get(), regions));
  const test::QueueDriver driver(memory, Gpa{0x2000 - 64}, 8);
  EXPECT_FALSE(OrThrow(Virtqueue::Create(memory, driver.layout())).Addresses().ok());
}

TEST(Virtqueue, GoesOnWhereTheKernelStopped) {
  const GuestMemory memory = test::MakeGuestMemory(1 << 20);
  test::QueueDriver driver(memory, Gpa{0x3000}, 8);
  Virtqueue queue = OrThrow(Virtqueue::Create(memory, driver.layout()));
  driver.Add({{Gpa{0x8000}, 1}});
  const uint16_t second = driver.Add({{Gpa{0x8000}, 2}});
  queue.MoveTo({1, 1});
  Chain chain;
  ASSERT_TRUE(OrThrow(queue.Pop(chain)));
  EXPECT_EQ(chain.head, second);
  EXPECT_TRUE(queue.Push(chain.head, 0).ok());
  EXPECT_EQ(driver.UsedIndex(), 2);
}

// A queue whose process may die at any moment, and what its successor makes of the log.
class TakenOverQueue : public VirtqueueTest {
 protected:
  void SetUp() override {
    driver_ = std::make_unique<QueueDriver>(memory_, kQueueBase, 8);
    queue_ = OrThrow(Virtqueue::Create(memory_, driver_->layout(), {}, log_));
  }
  void Offer(unsigned chains) {
    for (unsigned i = 0; i < chains; ++i) driver_->Add({{kData + uint64_t{512} * i, 512}});
  }
  std::vector<uint16_t> Take(unsigned chains) {
    std::vector<uint16_t> heads;
    for (unsigned i = 0; i < chains && Popped(); ++i) heads.push_back(chain_.head);
    return heads;
  }
  Result<void> TakeOver() {
    auto successor = Virtqueue::TakeOver(memory_, driver_->layout(), log_);
    if (!successor.ok()) return successor.error();
    queue_ = *std::move(successor);
    return {};
  }

  OwnFd file_ = OrThrow(Journal::Make("journal-test", 1));
  QueueLog log_ = OrThrow(Journal::Map(file_.get(), 1)).Queue(0);
};

// The log knows nothing of what the kernel did, only the used ring does.
TEST_F(TakenOverQueue, ASuccessorGoesOnWhereTheKernelEnded) {
  Virtqueue kernel = OrThrow(Virtqueue::Create(memory_, driver_->layout()));
  Chain chain;
  for (unsigned i = 0; i < 20; ++i) {
    driver_->Add({{kData, i + 1}});
    ASSERT_TRUE(OrThrow(kernel.Pop(chain)));
    ASSERT_TRUE(kernel.Push(chain.head, 0).ok());
    ASSERT_TRUE(driver_->TakeUsed());
  }
  const uint16_t last = driver_->Add({{kData, 100}});
  Virtqueue queue = OrThrow(Virtqueue::TakeOverFromKernel(memory_, driver_->layout(), log_));
  ASSERT_TRUE(OrThrow(queue.Pop(chain)));
  EXPECT_EQ(chain.head, last);
  // One that carries packets itself may come next.
  Virtqueue next = OrThrow(Virtqueue::TakeOver(memory_, driver_->layout(), log_));
  ASSERT_TRUE(OrThrow(next.Pop(chain)));
  EXPECT_EQ(chain.head, last);
  EXPECT_FALSE(OrThrow(next.Pop(chain)));
}

TEST_F(TakenOverQueue, WhatWasInHandIsPoppedAgainAndNothingElseIs) {
  Offer(6);
  ASSERT_EQ(Take(5), (std::vector<uint16_t>{0, 1, 2, 3, 4}));
  ASSERT_TRUE(queue_->Push(1, 0).ok());
  ASSERT_TRUE(queue_->Push(3, 0).ok());
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_TRUE(queue_->HasChains());
  EXPECT_EQ(Take(9), (std::vector<uint16_t>{0, 2, 4, 5})) << "and what nobody had taken";
  EXPECT_FALSE(queue_->HasChains());
  for (const uint16_t head : {5, 0, 4, 2}) ASSERT_TRUE(queue_->Push(head, 0).ok());
  EXPECT_EQ(driver_->UsedIndex(), 6);
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_TRUE(Take(9).empty());
}

TEST_F(TakenOverQueue, DeathBetweenPublishingAndWritingDownRepeatsNothing) {
  Offer(4);
  ASSERT_EQ(Take(4).size(), 4u);
  // The used ring as the predecessor left it, one store before it died.
  Virtqueue unlogged = OrThrow(Virtqueue::Create(memory_, driver_->layout(), {4, 0}));
  ASSERT_TRUE(unlogged.Push(2, 0).ok());
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_EQ(Take(9), (std::vector<uint16_t>{0, 1, 3}));
}

// It may have died between a write and its mark.
TEST_F(TakenOverQueue, WhatThePredecessorMayHaveWrittenIsMarked) {
  const OwnFd file = OrThrow(DirtyLog::Make("dirty-test", memory_.end()));
  std::vector<DirtyLog> taker;
  taker.push_back(OrThrow(DirtyLog::Map(file.get(), memory_.end())));
  memory_.LogWrites(OrThrow(DirtyLog::Map(file.get(), memory_.end())));
  for (const uint64_t page : {0x20u, 0x21u, 0x22u}) driver_->Add({{kData, 16}, {Gpa{page << 12}, 4096, true}});
  ASSERT_EQ(Take(2).size(), 2u);
  ASSERT_TRUE(queue_->Push(0, 4096).ok());
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_EQ(taker.front().Take(0), 0u) << "nobody wants to know";
  ASSERT_TRUE(DirtyLog::TakePart().ok());
  ASSERT_TRUE(DirtyLog::SwitchOn(taker).ok());
  ASSERT_EQ(Take(1), (std::vector<uint16_t>{2}));
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_EQ(taker.front().Take(0), uint64_t{1} << 1 | uint64_t{1} << 0x21) << "the used ring, and what was in hand";
}

TEST_F(TakenOverQueue, AKickIsAskedForOnlyWhereNothingIsOwed) {
  Offer(2);
  ASSERT_EQ(Take(2).size(), 2u);
  ASSERT_TRUE(queue_->Push(1, 0).ok());
  ASSERT_TRUE(TakeOver().ok());
  const auto more = queue_->EnableKicks();
  ASSERT_TRUE(more.ok());
  EXPECT_TRUE(*more);
}

TEST_F(TakenOverQueue, AUsedRingThatContradictsTheLogBreaksTheQueue) {
  Offer(4);
  ASSERT_EQ(Take(3).size(), 3u);
  driver_->Put<uint16_t>(driver_->layout().used + 2, 40);
  EXPECT_EQ(TakeOver().error().code, EPROTO) << "further than the queue is long";
  driver_->Put<uint16_t>(driver_->layout().used + 2, 2);
  EXPECT_EQ(TakeOver().error().code, EPROTO) << "the same chain twice, as the ring holds zeros";
}

}  // namespace
}  // namespace bulkhead::device
