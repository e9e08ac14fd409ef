// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/work_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "device-procs/common/block/task.h"

namespace bulkhead::device {
namespace {

constexpr unsigned kMost = 2;

class WorkPoolTest : public testing::Test {
 protected:
  WorkPoolTest() : ring_(8), pool_(ring_, kMost) { ring_.Enable(); }

  Task<int> Square(int number) {
    const int square = co_await ComputeOn(pool_, [number] { return number * number; });
    co_return square;
  }
  void WaitFor(const int& ended, int count) {
    while (ended < count) OrThrow(ring_.SubmitAndReap(true));
  }

  IoRing ring_;
  WorkPool pool_;
};

TEST_F(WorkPoolTest, ComputesOnOtherThreadsAndGoesOnOnItsOwn) {
  std::thread::id computed_by;
  std::thread::id resumed_by;
  int ended = 0;
  const auto work = [&]() -> Task<int> {
    co_await ComputeOn(pool_, [&] { return computed_by = std::this_thread::get_id(); });
    resumed_by = std::this_thread::get_id();
    co_return 0;
  };
  Spawn(work(), [&](int) { ++ended; });
  EXPECT_EQ(ended, 0);
  WaitFor(ended, 1);
  EXPECT_NE(computed_by, std::this_thread::get_id());
  EXPECT_EQ(resumed_by, std::this_thread::get_id());
}

TEST_F(WorkPoolTest, EachOfManyGetsItsOwnResult) {
  constexpr int kCount = 1000;
  int ended = 0;
  for (int i = 0; i < kCount; ++i) {
    Spawn(Square(i), [&ended, i](int square) {
      EXPECT_EQ(square, i * i);
      ++ended;
    });
  }
  WaitFor(ended, kCount);
  EXPECT_EQ(ended, kCount);
}

TEST_F(WorkPoolTest, OneThatIsSlowHoldsUpNoOther) {
  if (pool_.width() < 2) GTEST_SKIP() << "one processor, and so one thread";
  std::atomic<bool> may_end = false;
  int slow_ended = 0;
  int ended = 0;
  const auto slow = [&]() -> Task<int> {
    co_await ComputeOn(pool_, [&] {
      may_end.wait(false);
      return 0;
    });
    co_return 0;
  };
  Spawn(slow(), [&](int) { ++slow_ended; });
  for (int i = 0; i < 10; ++i) Spawn(Square(i), [&](int) { ++ended; });
  WaitFor(ended, 10);
  EXPECT_EQ(slow_ended, 0);
  may_end = true;
  may_end.notify_one();
  WaitFor(slow_ended, 1);
}

TEST_F(WorkPoolTest, ItsThreadsHaveNames) {
  unsigned helpers = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::ifstream(task.path() / "comm") >> name;
    if (name.starts_with("helper")) ++helpers;
  }
  EXPECT_EQ(helpers, pool_.width());
}

}  // namespace
}  // namespace bulkhead::device
