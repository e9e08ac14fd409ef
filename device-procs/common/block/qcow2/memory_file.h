// SPDX-License-Identifier: Apache-2.0
// A file in memory for tests: keeps what is asked of it until it is told to carry it out, in any order, and remembers
// writes and flushes if it is told to. What is computed elsewhere is one more of the things that end late.
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
#include "device-procs/common/block/qcow2/write_log.h"

namespace bulkhead::device::test {

class MemoryFile final : public BlockChannel {
 public:
  std::vector<std::byte> bytes;
  uint64_t max_bytes = UINT64_MAX;  // writes past this fail: the disk is full
  bool recording = false;
  int fault = 0;  // what the next request fails with when it is carried out
  WriteLog log;
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
    const std::vector<iovec> vectors(from.begin(), from.end());
    Ask([this, offset, vectors, &done] { done.Completed(Apply(offset, Gather(vectors))); },
        [offset, vectors] { return WriteLog::Change{.offset = offset, .bytes = Gather(vectors)}; });
  }
  void Flush(BlockCompletion& done) override {
    Ask([this, &done, promised = log.next_number()] {
      if (fault != 0) return done.Completed(std::exchange(fault, 0));
      if (recording) log.Flushed(promised);
      done.Completed(0);
    });
  }
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
    Ask([this, offset, size_bytes, &done] {
      const uint64_t end = std::min<uint64_t>(offset + size_bytes, bytes.size());
      if (offset < end) (void)Apply(offset, std::vector<std::byte>(end - offset));
      done.Completed(0);
    });
  }
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool, BlockCompletion& done) override {
    Ask([this, offset, size_bytes, &done] {
      const bool fits = offset <= max_bytes && size_bytes <= max_bytes - offset;
      done.Completed(fits ? Apply(offset, std::vector<std::byte>(size_bytes)) : ENOSPC);
    });
  }

  // Something else that is carried out among the requests. `written`: what of the file it changes.
  void Ask(std::function<void()> work, std::function<WriteLog::Change()> written = {}) {
    waiting_.push_back({std::move(work), std::move(written)});
  }
  // What it may have if whoever writes it is killed now: of the writes that are waiting some, or their beginnings.
  std::vector<std::byte> AfterDeath(std::mt19937_64& random) const {
    std::vector<std::byte> after = bytes;
    for (const Waiting& waiting : waiting_) {
      if (!waiting.written || random() % 2 == 0) continue;
      WriteLog::Change change = waiting.written();
      if (random() % 4 == 0) change.bytes.resize(random() % (change.bytes.size() / 512 + 1) * 512);
      if (!change.bytes.empty()) WriteLog::ApplyTo(after, change);
    }
    return after;
  }

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
    auto work = std::move(waiting_[which].work);
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

 private:
  struct Waiting {
    std::function<void()> work;
    std::function<WriteLog::Change()> written;
  };

  static std::vector<std::byte> Gather(const std::vector<iovec>& vectors) {
    std::vector<std::byte> gathered;
    for (const iovec& vector : vectors) {
      const auto* start = static_cast<const std::byte*>(vector.iov_base);
      gathered.insert(gathered.end(), start, start + vector.iov_len);
    }
    return gathered;
  }

  int Apply(uint64_t offset, std::vector<std::byte> written) {
    if (fault != 0) return std::exchange(fault, 0);
    if (offset + written.size() > max_bytes) return ENOSPC;
    ++writes;
    WriteLog::ApplyTo(bytes, offset, written);
    if (recording) log.Add(offset, std::move(written));
    return 0;
  }

  std::deque<Waiting> waiting_;
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
