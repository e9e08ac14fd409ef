// SPDX-License-Identifier: Apache-2.0
// A file in memory for tests: keeps what is asked of it until it is told to carry it out, in any order, and remembers
// writes and flushes, so that a test can say what the disk has after a power cut at any of them. What is computed
// elsewhere is one more of the things that end late.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <optional>
#include <random>
#include <vector>

#include "device-procs/common/block/block_task.h"

namespace bulkhead::device::test {

class MemoryFile final : public BlockChannel {
 public:
  struct Change {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
    uint64_t number = 0;
  };
  // All changes between two flushes: after a power cut in it any of them are there, whatever was asked for first.
  using Period = std::vector<Change>;

  std::vector<std::byte> bytes;
  uint64_t max_bytes = UINT64_MAX;  // writes past this fail: the disk is full
  bool recording = false;
  int fault = 0;  // what the next request fails with when it is carried out
  // Finished periods and the present one. A flush promises what was complete when it was asked for, no more.
  std::vector<Period> periods{1};
  size_t writes = 0;
  size_t reads = 0;

  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    Ask([this, offset, vectors = std::vector<iovec>(to.begin(), to.end()), &done] {
      if (fault != 0) return done.Completed(std::exchange(fault, 0));
      ++reads;
      uint64_t at = offset;
      for (const iovec& vector : vectors) {
        const uint64_t there = at < bytes.size() ? std::min<uint64_t>(vector.iov_len, bytes.size() - at) : 0;
        if (there != 0) std::memcpy(vector.iov_base, bytes.data() + at, there);
        std::memset(static_cast<std::byte*>(vector.iov_base) + there, 0, vector.iov_len - there);
        at += vector.iov_len;
      }
      done.Completed(0);
    });
  }
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
    Ask([this, offset, vectors = std::vector<iovec>(from.begin(), from.end()), &done] {
      Change change{offset, {}, 0};
      for (const iovec& vector : vectors) {
        const auto* start = static_cast<const std::byte*>(vector.iov_base);
        change.bytes.insert(change.bytes.end(), start, start + vector.iov_len);
      }
      done.Completed(Apply(std::move(change)));
    });
  }
  void Flush(BlockCompletion& done) override {
    Ask([this, &done, promised = next_number_] {
      if (fault != 0) return done.Completed(std::exchange(fault, 0));
      if (recording) EndPeriod(promised);
      done.Completed(0);
    });
  }
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
    Ask([this, offset, size_bytes, &done] {
      const uint64_t end = std::min<uint64_t>(offset + size_bytes, bytes.size());
      if (offset < end) (void)Apply({offset, std::vector<std::byte>(end - offset), 0});
      done.Completed(0);
    });
  }
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool, BlockCompletion& done) override {
    Ask([this, offset, size_bytes, &done] {
      const bool fits = offset <= max_bytes && size_bytes <= max_bytes - offset;
      done.Completed(fits ? Apply({offset, std::vector<std::byte>(size_bytes), 0}) : ENOSPC);
    });
  }

  // Something else that is carried out among the requests.
  void Ask(std::function<void()> work) { waiting_.push_back(std::move(work)); }

  size_t waiting() const { return waiting_.size(); }
  // Carries out one request, a random one of the first few or the oldest.
  bool Step(std::mt19937_64* random = nullptr) {
    if (waiting_.empty()) return false;
    const size_t among = std::min<size_t>(waiting_.size(), 8);
    return CarryOut(random != nullptr ? (*random)() % among : 0);
  }
  bool CarryOut(size_t which) {
    if (waiting_.empty()) return false;
    which %= waiting_.size();
    auto work = std::move(waiting_[which]);
    waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(which));
    work();
    return true;
  }
  void Drain(std::mt19937_64* random = nullptr) {
    while (Step(random)) {
    }
  }
  // Runs a task to its end.
  template <typename T>
  T Do(Task<T> task, std::mt19937_64* random = nullptr) {
    std::optional<T> value;
    Spawn(std::move(task), [&](T result) { value.emplace(std::move(result)); });
    while (!value && Step(random)) {
    }
    return std::move(value).value();
  }
  static void ApplyTo(std::vector<std::byte>& to, const Change& change) {
    if (to.size() < change.offset + change.bytes.size()) to.resize(change.offset + change.bytes.size());
    std::memcpy(to.data() + change.offset, change.bytes.data(), change.bytes.size());
  }

 private:
  int Apply(Change change) {
    if (fault != 0) return std::exchange(fault, 0);
    if (change.offset + change.bytes.size() > max_bytes) return ENOSPC;
    ++writes;
    change.number = next_number_++;
    ApplyTo(bytes, change);
    if (recording) periods.back().push_back(std::move(change));
    return 0;
  }

  void EndPeriod(uint64_t promised) {
    Period& now = periods.back();
    const auto first_open =
        std::find_if(now.begin(), now.end(), [&](const Change& change) { return change.number >= promised; });
    Period next(std::make_move_iterator(first_open), std::make_move_iterator(now.end()));
    now.erase(first_open, now.end());
    periods.push_back(std::move(next));
  }

  std::deque<std::function<void()>> waiting_;
  uint64_t next_number_ = 0;
};

// Computes when the file is told to carry it out, or when the test says so.
class LateOffload final : public Offload {
 public:
  static constexpr unsigned kWidth = 2;

  explicit LateOffload(MemoryFile& file) : file_(file) {}

  bool holding = false;
  std::deque<Job*> held;

  void Start(Job& job) override {
    if (holding) return held.push_back(&job);
    file_.Ask([&job] { Run(job); });
  }
  unsigned width() const override { return kWidth; }
  void Release() {
    Job& job = *held.front();
    held.pop_front();
    Run(job);
  }

 private:
  static void Run(Job& job) {
    job.Compute();
    job.Completed();
  }

  MemoryFile& file_;
};

}  // namespace bulkhead::device::test
