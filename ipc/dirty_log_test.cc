// SPDX-License-Identifier: Apache-2.0
#include "ipc/dirty_log.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace bulkhead {
namespace {

constexpr uint64_t kPage = kGuestPageBytes;
constexpr uint64_t kPages = 200;

class DirtyLogTest : public testing::Test {
 protected:
  static DirtyLog MapIt(const OwnFd& file) { return OrThrow(DirtyLog::Map(file.get(), Gpa{kPages * kPage})); }
  std::vector<uint64_t> TakePages() {
    std::vector<uint64_t> pages;
    for (uint64_t word = 0; word * DirtyLog::kPagesPerWord < kPages; ++word) {
      const uint64_t marks = log_.Take(word);
      for (uint64_t bit = 0; bit < DirtyLog::kPagesPerWord; ++bit) {
        if ((marks >> bit & 1) != 0) pages.push_back(word * DirtyLog::kPagesPerWord + bit);
      }
    }
    return pages;
  }

  OwnFd file_ = OrThrow(DirtyLog::Make("dirty-test", Gpa{kPages * kPage}));
  DirtyLog log_ = MapIt(file_);
};

using Pages = std::vector<uint64_t>;

TEST_F(DirtyLogTest, MarksThePagesOfARange) {
  log_.Mark(Gpa{3 * kPage + 5}, 1);
  log_.Mark(Gpa{63 * kPage + 1}, 2 * kPage);
  log_.Mark(Gpa{130 * kPage}, kPage);
  log_.Mark(Gpa{140 * kPage}, 0);
  EXPECT_EQ(TakePages(), (Pages{3, 63, 64, 65, 130}));
  EXPECT_EQ(TakePages(), Pages{});
}

TEST_F(DirtyLogTest, MarksOfSeveralWordsAtOnce) {
  log_.Mark(Gpa{1 * kPage}, 150 * kPage);
  const Pages pages = TakePages();
  EXPECT_EQ(pages.size(), 150u);
  EXPECT_EQ(pages.front(), 1u);
  EXPECT_EQ(pages.back(), 150u);
}

TEST_F(DirtyLogTest, RangesBeyondItsEndAreCutOff) {
  log_.Mark(Gpa{(kPages - 1) * kPage}, 1000 * kPage);
  log_.Mark(Gpa{kPages * kPage}, kPage);
  log_.Mark(Gpa{~uint64_t{0} - 5}, 100);
  EXPECT_EQ(TakePages(), Pages{kPages - 1});
  log_.Mark(Gpa{(kPages - 2) * kPage + 1}, ~uint64_t{0});
  EXPECT_EQ(TakePages(), (Pages{kPages - 2, kPages - 1}));
}

TEST_F(DirtyLogTest, TakesPartInABitmap) {
  const std::vector<uint64_t> bits{1 | uint64_t{1} << 63, 0, 4, 8, 16};
  log_.Mark(64, bits);
  EXPECT_EQ(TakePages(), (Pages{64, 127, 194}));
}

TEST_F(DirtyLogTest, IsSwitchedByTheOtherEnd) {
  ASSERT_TRUE(DirtyLog::TakePart().ok());
  std::vector<DirtyLog> others;
  others.push_back(MapIt(file_));
  EXPECT_EQ(log_.on(), 0u);
  ASSERT_TRUE(DirtyLog::SwitchOn(others).ok());
  EXPECT_NE(log_.on(), 0u);
  others.front().SwitchOff();
  EXPECT_EQ(log_.on(), 0u);
}

TEST_F(DirtyLogTest, AnotherSizeIsRefused) {
  EXPECT_FALSE(DirtyLog::Map(file_.get(), Gpa{uint64_t{1} << 30}).ok());
  const OwnFd unsealed(::memfd_create("dirty-test", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(unsealed.get(), 2 * 4096), 0);
  EXPECT_FALSE(DirtyLog::Map(unsealed.get(), Gpa{kPages * kPage}).ok());
}

// Whoever writes says so afterwards: what is taken meanwhile is marked once more, or had been written before.
TEST_F(DirtyLogTest, NoWriteIsLostBetweenTwoWhoTakeAndMark) {
  constexpr uint64_t kWrites = 200'000;
  std::atomic<uint64_t> page{0};
  std::thread writer([&] {
    for (uint64_t i = 1; i <= kWrites; ++i) {
      page.store(i, std::memory_order_relaxed);
      log_.Mark(Gpa{7 * kPage}, 8);
    }
  });
  uint64_t copy = 0;
  while (copy != kWrites) {
    if (log_.Take(0) == 0) continue;
    copy = page.load(std::memory_order_relaxed);
  }
  writer.join();
  EXPECT_EQ(copy, kWrites);
}

}  // namespace
}  // namespace bulkhead
