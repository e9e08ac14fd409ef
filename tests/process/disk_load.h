// SPDX-License-Identifier: Apache-2.0
// For tests: a disk's guest, which asks the real disk process for much at the same time and knows what each block may
// have if all of that ends at once.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "device-procs/common/virtqueue_driver.h"
#include "tests/process/device_process.h"

namespace bulkhead::test {

constexpr uint64_t kBlock = 512;  // no cluster is smaller: what is written whole or not at all

// What a block may have. A value fills its block; 0 is what zeroes and discards leave.
class BlockHistory {
 public:
  explicit BlockHistory(uint64_t value = 0) : values_{value} {}
  void Begin(uint64_t value) { values_.push_back(value); }
  void Completed() { completed_ = values_.size() - 1; }
  void FlushBegins() { promised_ = completed_; }
  void Flushed() { flushed_ = promised_; }
  // What it had at the last flush that was waited for, or anything written since.
  bool Allows(uint64_t value) const;
  // What a read may find: the value that was waited for last, or one of those whose write failed since.
  bool Holds(uint64_t value) const;
  // What it ever had.
  bool Knows(uint64_t value) const;
  // The last value, which a flush has promised, is all that counts.
  void Settled() { *this = BlockHistory(values_.back()); }

 private:
  std::vector<uint64_t> values_;
  size_t completed_ = 0;  // the last one that was waited for
  size_t promised_ = 0;   // by a flush that has begun
  size_t flushed_ = 0;
};

// Of a disk's content, block `index`; fails if it is torn.
uint64_t BlockValue(std::span<const std::byte> content, uint64_t index);

// What is to become of a request.
enum class Fate : uint8_t { kSucceeds, kFails, kEither };
enum class Work : uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes };
using Fates = std::function<Fate(Work work, uint64_t first_block, uint64_t blocks)>;

// Requests of all kinds to one process, several at a time, no two to the same block.
class DiskLoad {
 public:
  // Without fates all succeed, and nothing is read.
  DiskLoad(DeviceProcess& process, std::vector<BlockHistory>& disk, uint64_t& next_value, std::mt19937_64& random,
           Fates fates = nullptr);
  ~DiskLoad();

  // Ends with requests under way.
  void Run(unsigned requests);
  // Flushes, once all else has ended.
  void Settle();
  uint64_t failed() const { return failed_; }  // requests

 private:
  class Function;
  struct Slot {
    bool busy = false;
    Work work = Work::kRead;
    uint64_t first = 0;
    uint64_t count = 0;
  };

  uint64_t IndexOf(const Slot& slot) const { return static_cast<uint64_t>(&slot - slots_.data()); }
  Gpa Memory(const Slot& slot) const;
  uint16_t HeadOf(const Slot& slot) const;
  bool AnyBusy() const;
  bool IsFree(uint64_t first, uint64_t count) const;
  void Start();
  void Begin(Slot& slot, Work work, uint64_t first, uint64_t count);
  // In descriptors of the slot's own: requests end in any order.
  void Offer(const Slot& slot, const std::vector<device::test::Buffer>& chain);
  // Waits for the end of something.
  void Reap();
  void End(Slot& slot);
  void ExpectHeld(const Slot& slot);

  DeviceProcess& process_;
  std::unique_ptr<Function> function_;
  std::vector<BlockHistory>& disk_;
  uint64_t& next_value_;
  std::mt19937_64& random_;
  std::array<Slot, 16> slots_;
  bool flushing_ = false;
  const Fates fates_;
  uint64_t failed_ = 0;
};

}  // namespace bulkhead::test
