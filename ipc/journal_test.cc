// SPDX-License-Identifier: Apache-2.0
#include "ipc/journal.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace bulkhead {
namespace {

constexpr size_t kQueues = 3;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
std::string Text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
Frame FrameOf(const std::string& text) {
  Frame frame;
  frame.length_bytes = static_cast<uint32_t>(text.size());
  std::memcpy(frame.bytes.data(), text.data(), text.size());
  return frame;
}

// As two processes map it.
class JournalTest : public testing::Test {
 protected:
  Journal Map() { return OrThrow(Journal::Map(file_.get(), kQueues)); }
  OwnFd file_ = OrThrow(Journal::Make("journal-test", kQueues));
  Journal journal_ = Map();
};

TEST_F(JournalTest, OneThatLeftNothingLeavesNothing) { EXPECT_EQ(journal_.Read().error().code, ENODATA); }

TEST_F(JournalTest, TheSuccessorFindsWhatWasCommittedLast) {
  for (uint32_t i = 1; i <= 5; ++i) {
    journal_.Commit({i, 10 * i}, FrameOf("reply " + std::to_string(i)), Bytes("state " + std::to_string(i)));
  }
  journal_.Commit({6, 60}, FrameOf("reply 6"));
  const auto legacy = Map().Read();
  ASSERT_TRUE(legacy.ok());
  EXPECT_EQ(legacy->position.requests_taken, 6u);
  EXPECT_EQ(legacy->position.replies_given, 60u);
  EXPECT_EQ(std::memcmp(legacy->reply.bytes.data(), "reply 6", legacy->reply.length_bytes), 0);
  EXPECT_EQ(Text(legacy->state), "state 5") << "the state is the last one that there was";
  EXPECT_GT(legacy->saved_at_ns, 0);
}

TEST_F(JournalTest, AStateThatDoesNotFitIsNone) {
  journal_.Commit({1, 1}, Frame(), Bytes("state"));
  journal_.Commit({2, 2}, Frame(), std::vector<std::byte>(kJournalStateBytes + 1));
  EXPECT_EQ(Map().Read().error().code, ENODATA);
  journal_.Commit({3, 3}, Frame(), std::vector<std::byte>(kJournalStateBytes));
  EXPECT_EQ(Map().Read()->state.size(), kJournalStateBytes);
}

TEST_F(JournalTest, HasRoomForTablesWhereItWasMadeWithSome) {
  EXPECT_TRUE(journal_.tables().empty());
  const OwnFd file = OrThrow(Journal::Make("journal-test", kQueues, Journal::Tables::kKept));
  const Journal first = OrThrow(Journal::Map(file.get(), kQueues));
  ASSERT_EQ(first.tables().size(), kJournalTablesBytes);
  first.Queue(kQueues - 1).Reset(7, 7);
  EXPECT_EQ(first.tables().front(), std::byte{0}) << "the last queue ends before them";
  first.tables().back() = std::byte{0x77};
  EXPECT_EQ(OrThrow(Journal::Map(file.get(), kQueues)).tables().back(), std::byte{0x77});
}

TEST_F(JournalTest, OneOfAnotherSizeIsNotMapped) { EXPECT_FALSE(Journal::Map(file_.get(), 100 * kQueues).ok()); }

TEST_F(JournalTest, ChainsThatAreOutComeInTheOrderInWhichTheyWereTaken) {
  QueueLog log = journal_.Queue(1);
  log.Reset(0xFFFE, 0xFFFE);
  for (const uint16_t head : {7, 3, 200, 5}) log.Take(head, log.next_available());
  log.GiveBack(200);
  log.SetUsed(0xFFFF);
  const QueueLog left = Map().Queue(1);
  EXPECT_EQ(left.next_available(), 2) << "indices wrap";
  EXPECT_EQ(left.next_used(), 0xFFFF);
  std::vector<uint16_t> heads;
  for (const QueueLog::Chain& chain : left.Out(256)) heads.push_back(chain.head);
  EXPECT_EQ(heads, (std::vector<uint16_t>{7, 3, 5}));
  EXPECT_TRUE(Map().Queue(0).Out(256).empty()) << "each queue has its own";
}

TEST_F(JournalTest, AChainThatWasTakenBackIsNotOut) {
  QueueLog log = journal_.Queue(0);
  log.Reset(0, 0);
  for (const uint16_t head : {1, 2, 3}) log.Take(head, log.next_available());
  log.UndoFrom(1);
  const auto out = log.Out(256);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].head, 1);
}

}  // namespace
}  // namespace bulkhead
