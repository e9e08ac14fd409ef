// SPDX-License-Identifier: Apache-2.0
// For tests: what was written to a file, and which of it a flush promised, so that a test can say what the disk has
// after a power cut at any time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace bulkhead::device::test {

class WriteLog {
 public:
  struct Change {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
    uint64_t number = 0;
  };
  // All changes between two flushes: after a power cut in it any of them are there, whatever was asked for first.
  using Period = std::vector<Change>;

  // Finished periods and the present one.
  std::vector<Period> periods{1};

  // A change that is complete.
  void Add(uint64_t offset, std::vector<std::byte> bytes) {
    periods.back().push_back({offset, std::move(bytes), next_number_++});
  }
  // A flush promises what is complete when it is asked for: all changes before this one.
  uint64_t next_number() const { return next_number_; }
  void Flushed(uint64_t promised) {
    Period& now = periods.back();
    const auto first_open =
        std::find_if(now.begin(), now.end(), [&](const Change& change) { return change.number >= promised; });
    Period next(std::make_move_iterator(first_open), std::make_move_iterator(now.end()));
    now.erase(first_open, now.end());
    periods.push_back(std::move(next));
  }
  // The finished periods, which the log then has no more; the present one goes on.
  std::vector<Period> Take() {
    std::vector<Period> taken(1);
    taken[0].swap(periods.back());
    periods.swap(taken);
    taken.pop_back();
    return taken;
  }

  static void ApplyTo(std::vector<std::byte>& to, uint64_t offset, std::span<const std::byte> bytes) {
    if (to.size() < offset + bytes.size()) to.resize(offset + bytes.size());
    if (!bytes.empty()) std::memcpy(to.data() + offset, bytes.data(), bytes.size());
  }
  static void ApplyTo(std::vector<std::byte>& to, const Change& change) { ApplyTo(to, change.offset, change.bytes); }

 private:
  uint64_t next_number_ = 0;
};

// What the disk has after a power cut: `before` all periods that ended, and of the present one any of the changes, torn
// or whole.
inline std::vector<std::byte> AfterPowerCut(const std::vector<std::byte>& before, const WriteLog::Period& period,
                                            std::mt19937_64& random) {
  constexpr size_t kSector = 512;  // what a disk writes whole or not at all
  std::vector<std::byte> bytes = before;
  const uint64_t of_ten = random() % 11;
  for (const WriteLog::Change& change : period) {
    if (random() % 10 >= of_ten) continue;
    if (random() % 4 != 0) {
      WriteLog::ApplyTo(bytes, change);
      continue;
    }
    for (size_t at = 0; at < change.bytes.size(); at += kSector) {
      if (random() % 2 == 0) continue;
      const size_t size = std::min(kSector, change.bytes.size() - at);
      WriteLog::ApplyTo(bytes, change.offset + at, std::span(change.bytes).subspan(at, size));
    }
  }
  return bytes;
}

}  // namespace bulkhead::device::test
