// SPDX-License-Identifier: Apache-2.0
// For tests: a disk's guest, which asks the real disk process for much at the same time and knows what each block may
// have if all of that ends at once.
#pragma once

#include <array>
#include <cstdint>
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

// Requests of all kinds to one process, several at a time, no two to the same block.
class DiskLoad {
 public:
  DiskLoad(DeviceProcess& process, std::vector<BlockHistory>& disk, uint64_t& next_value, std::mt19937_64& random);
  ~DiskLoad();

  // Ends with requests under way.
  void Run(unsigned requests);
  // Flushes, once all else has ended.
  void Settle();

 private:
  class Function;
  struct Slot {
    bool busy = false;
    uint32_t type = 0;
    uint64_t first = 0;
    uint64_t count = 0;
  };

  uint64_t IndexOf(const Slot& slot) const { return static_cast<uint64_t>(&slot - slots_.data()); }
  Gpa Memory(const Slot& slot) const;
  uint16_t HeadOf(const Slot& slot) const;
  bool AnyBusy() const;
  bool IsFree(uint64_t first, uint64_t count) const;
  void Start();
  void Begin(Slot& slot, uint32_t type, uint64_t first, uint64_t count);
  // In descriptors of the slot's own: requests end in any order.
  void Offer(const Slot& slot, const std::vector<device::test::Buffer>& chain);
  // Waits for the end of something.
  void Reap();

  DeviceProcess& process_;
  std::unique_ptr<Function> function_;
  std::vector<BlockHistory>& disk_;
  uint64_t& next_value_;
  std::mt19937_64& random_;
  std::array<Slot, 16> slots_;
  bool flushing_ = false;
};

}  // namespace bulkhead::test
