// SPDX-License-Identifier: Apache-2.0
#include "broker/dirty_logs.h"

#include <algorithm>
#include <bit>

#include "ipc/platform.h"

namespace bulkhead::broker {
namespace {

constexpr uint64_t kPagesPerWord = DirtyLog::kPagesPerWord;

Gpa EndOf(const std::vector<MemoryRegion>& regions) { return regions.back().base + regions.back().size_bytes; }

}  // namespace

DirtyLogs::DirtyLogs(uint64_t memory_bytes, const std::vector<std::string>& writers)
    : regions_(platform::RamRegions(memory_bytes)), writers_(writers) {
  for (const std::string& writer : writers_) {
    files_.push_back(OrThrow(DirtyLog::Make("dirty-" + writer, EndOf(regions_))));
    logs_.push_back(OrThrow(DirtyLog::Map(files_.back().get(), EndOf(regions_))));
  }
}

DirtyLogs::DirtyLogs(uint64_t memory_bytes, const std::vector<std::string>& writers, KeptFds& kept)
    : regions_(platform::RamRegions(memory_bytes)), writers_(writers) {
  for (size_t i = 0; i < writers_.size(); ++i) {
    files_.push_back(kept.Take());
    logs_.push_back(OrThrow(DirtyLog::Map(files_.back().get(), EndOf(regions_))));
  }
}

void DirtyLogs::AddTo(std::vector<int>& fds) const {
  for (const OwnFd& file : files_) fds.push_back(file.get());
}

int DirtyLogs::FileOf(const std::string& writer) const {
  const auto found = std::ranges::find(writers_, writer);
  return found == writers_.end() ? -1 : files_[static_cast<size_t>(found - writers_.begin())].get();
}

Result<void> DirtyLogs::SwitchOn() { return DirtyLog::SwitchOn(logs_); }

void DirtyLogs::SwitchOff() {
  for (const DirtyLog& log : logs_) log.SwitchOff();
}

bool DirtyLogs::on() const {
  return std::ranges::any_of(logs_, [](const DirtyLog& log) { return log.on().load(std::memory_order_relaxed) != 0; });
}

DirtyLogs::Count DirtyLogs::Take() {
  Count count{.pages = std::vector<uint64_t>(logs_.size()), .all = 0};
  for (const MemoryRegion& region : regions_) {
    // Regions begin where a word does.
    const uint64_t first = region.base.value / kGuestPageBytes, pages = region.size_bytes / kGuestPageBytes;
    for (uint64_t done = 0; done < pages; done += kPagesPerWord) {
      const uint64_t there = std::min(kPagesPerWord, pages - done);
      const uint64_t memory = ~uint64_t{0} >> (kPagesPerWord - there);
      uint64_t any = 0;
      for (size_t i = 0; i < logs_.size(); ++i) {
        const uint64_t marks = logs_[i].Take((first + done) / kPagesPerWord) & memory;
        count.pages[i] += static_cast<uint64_t>(std::popcount(marks));
        any |= marks;
      }
      count.all += static_cast<uint64_t>(std::popcount(any));
    }
  }
  return count;
}

}  // namespace bulkhead::broker
