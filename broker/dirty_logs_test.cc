// SPDX-License-Identifier: Apache-2.0
#include "broker/dirty_logs.h"

#include <gtest/gtest.h>

#include "ipc/platform.h"

namespace bulkhead::broker {
namespace {

constexpr uint64_t kPage = kGuestPageBytes;
const std::vector<std::string> kWriters{"vcpu-runner", "disk0"};

// As a process maps it: whatever end of memory the broker told.
DirtyLog MapAs(const DirtyLogs& logs, const std::string& writer, uint64_t memory_bytes) {
  const auto regions = platform::RamRegions(memory_bytes);
  return OrThrow(DirtyLog::Map(logs.FileOf(writer), regions.back().base + regions.back().size_bytes));
}

TEST(DirtyLogs, CountEachWritersPagesAndAllOnce) {
  constexpr uint64_t kBytes = 100 * kPage;
  DirtyLogs logs(kBytes, kWriters);
  const DirtyLog runner = MapAs(logs, "vcpu-runner", kBytes), disk = MapAs(logs, "disk0", kBytes);
  EXPECT_EQ(logs.FileOf("usernet0"), -1);
  ASSERT_TRUE(DirtyLog::TakePart().ok());
  ASSERT_TRUE(logs.SwitchOn().ok());
  EXPECT_NE(disk.on().load(), 0u);
  runner.Mark(Gpa{3 * kPage}, 4 * kPage);
  disk.Mark(Gpa{6 * kPage}, 3 * kPage);
  const DirtyLogs::Count count = logs.Take();
  EXPECT_EQ(count.pages, (std::vector<uint64_t>{4, 3}));
  EXPECT_EQ(count.all, 6u);
  EXPECT_EQ(logs.Take().all, 0u);
  logs.SwitchOff();
  EXPECT_EQ(disk.on().load(), 0u);
}

// A process can set every bit of its own log, also of the hole below 4 GiB and of the last word's rest.
TEST(DirtyLogs, MarksWhereNoMemoryIsAreNotCounted) {
  constexpr uint64_t kBytes = platform::kLowRamLimit + 3 * kPage;
  DirtyLogs logs(kBytes, kWriters);
  const DirtyLog disk = MapAs(logs, "disk0", kBytes);
  disk.Mark(0, std::vector<uint64_t>((platform::kHighRamBase / kPage) / 64 + 64, ~uint64_t{0}));
  const DirtyLogs::Count count = logs.Take();
  EXPECT_EQ(count.pages[1], kBytes / kPage);
  EXPECT_EQ(count.all, kBytes / kPage);
}

TEST(DirtyLogs, AnotherBrokerGoesOnWithThem) {
  constexpr uint64_t kBytes = 64 * kPage;
  std::vector<OwnFd> kept;
  {
    DirtyLogs logs(kBytes, kWriters);
    ASSERT_TRUE(DirtyLog::TakePart().ok());
    ASSERT_TRUE(logs.SwitchOn().ok());
    MapAs(logs, "disk0", kBytes).Mark(Gpa{5 * kPage}, 1);
    std::vector<int> fds;
    logs.AddTo(fds);
    for (const int fd : fds) kept.push_back(OrThrow(DuplicateFd(fd)));
  }
  KeptFds fds(std::move(kept));
  DirtyLogs logs(kBytes, kWriters, fds);
  EXPECT_TRUE(logs.on());
  EXPECT_EQ(logs.Take().all, 1u);
}

}  // namespace
}  // namespace bulkhead::broker
