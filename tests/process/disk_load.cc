// SPDX-License-Identifier: Apache-2.0
#include "tests/process/disk_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/process/process_function.h"

namespace bulkhead::test {
namespace {

using device::test::Buffer;
using device::test::QueueDriver;

constexpr uint64_t kMostBlocks = 128;
constexpr uint16_t kChain = 4;  // descriptors that a request may take
// Behind a request's header and status. On a block's boundary: the kernel, told to kill, stops to copy where it meets a
// page that is not there, which is inside of a block that lies on two.
constexpr uint64_t kDataAt = kBlock;
constexpr uint64_t kFeatures =
    device::test::kVersion1 | device::FeatureBit(9) | device::FeatureBit(13) | device::FeatureBit(14);

// As virtio has them (virtio 1.2 §5.2.6).
uint32_t TypeOf(Work work) {
  switch (work) {
    case Work::kRead:
      return 0;
    case Work::kWrite:
      return 1;
    case Work::kFlush:
      return 4;
    case Work::kDiscard:
      return 11;
    case Work::kWriteZeroes:
      break;
  }
  return 13;
}

}  // namespace

bool BlockHistory::Allows(uint64_t value) const {
  return std::find(values_.begin() + static_cast<ptrdiff_t>(flushed_), values_.end(), value) != values_.end();
}

bool BlockHistory::Holds(uint64_t value) const {
  return std::find(values_.begin() + static_cast<ptrdiff_t>(completed_), values_.end(), value) != values_.end();
}

bool BlockHistory::Knows(uint64_t value) const {
  return std::find(values_.begin(), values_.end(), value) != values_.end();
}

uint64_t BlockValue(std::span<const std::byte> content, uint64_t index) {
  std::array<uint64_t, kBlock / sizeof(uint64_t)> words;
  std::memcpy(words.data(), content.data() + index * kBlock, kBlock);
  EXPECT_EQ(std::count(words.begin(), words.end(), words[0]), static_cast<ptrdiff_t>(words.size()))
      << "block " << index << " is torn";
  return words[0];
}

class DiskLoad::Function final : public ProcessFunction {
 public:
  static constexpr uint16_t kQueueSize = 64;

  explicit Function(DeviceProcess& process)
      : ProcessFunction(process), queue_(process.memory(), Gpa{0x10000}, kQueueSize) {
    EXPECT_TRUE(Negotiate(kFeatures));
    SetUpQueue(0, queue_.layout());
    EnableMsix(2);
    GoLive();
  }
  QueueDriver& queue() { return queue_; }

 private:
  QueueDriver queue_;
};

DiskLoad::DiskLoad(DeviceProcess& process, std::vector<BlockHistory>& disk, uint64_t& next_value,
                   std::mt19937_64& random, Fates fates)
    : process_(process),
      function_(std::make_unique<Function>(process)),
      disk_(disk),
      next_value_(next_value),
      random_(random),
      fates_(std::move(fates)) {
  static_assert(std::tuple_size_v<decltype(slots_)> * kChain <= Function::kQueueSize);
}

DiskLoad::~DiskLoad() = default;

Gpa DiskLoad::Memory(const Slot& slot) const { return Gpa{0x100000} + IndexOf(slot) * (kMostBlocks + 1) * kBlock; }

uint16_t DiskLoad::HeadOf(const Slot& slot) const { return static_cast<uint16_t>(IndexOf(slot) * kChain); }

bool DiskLoad::AnyBusy() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.busy; });
}

bool DiskLoad::IsFree(uint64_t first, uint64_t count) const {
  return std::none_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.busy && first < slot.first + slot.count && slot.first < first + count;
  });
}

void DiskLoad::Run(unsigned requests) {
  for (unsigned i = 0; i < requests; ++i) {
    while (std::none_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.busy; })) Reap();
    Start();
    process_.Kick(0);
  }
}

void DiskLoad::Settle() {
  while (AnyBusy()) Reap();
  Begin(slots_[0], Work::kFlush, 0, 0);
  process_.Kick(0);
  while (flushing_) Reap();
}

void DiskLoad::Start() {
  Slot& slot = *std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.busy; });
  const uint64_t kind = random_() % 20;
  if (kind == 0 && !flushing_) return Begin(slot, Work::kFlush, 0, 0);
  uint64_t first = 0;
  uint64_t count = 0;
  do {
    count = 1 + random_() % (random_() % 4 == 0 ? kMostBlocks : 16);
    first = random_() % (disk_.size() - count);
    // Parts of clusters are not discarded.
    if (kind == 1) first = first / kMostBlocks * kMostBlocks;
    if (kind == 1) count = kMostBlocks;
  } while (!IsFree(first, count));
  const Work other = fates_ && kind < 10 ? Work::kRead : Work::kWrite;
  Begin(slot, kind == 1 ? Work::kDiscard : kind < 4 ? Work::kWriteZeroes : other, first, count);
}

void DiskLoad::Begin(Slot& slot, Work work, uint64_t first, uint64_t count) {
  slot = {.busy = true, .work = work, .first = first, .count = count};
  const Gpa header = Memory(slot);
  const Gpa data = header + kDataAt;
  QueueDriver& queue = function_->queue();
  queue.Put(header, TypeOf(work));
  queue.Put<uint32_t>(header + 4, 0);
  queue.Put<uint64_t>(header + 8, work == Work::kWrite || work == Work::kRead ? first : 0);
  queue.Put<uint8_t>(header + 16, 0xFF);
  std::vector<Buffer> chain{{header, 16}};
  if (work == Work::kRead) {
    chain.push_back({data, static_cast<uint32_t>(count * kBlock), true});
  } else if (work == Work::kWrite) {
    std::vector<uint64_t> words;
    for (uint64_t i = 0; i < count; ++i) {
      disk_[first + i].Begin(++next_value_);
      words.insert(words.end(), kBlock / sizeof(uint64_t), next_value_);
    }
    queue.PutText(data, {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t)});
    chain.push_back({data, static_cast<uint32_t>(count * kBlock)});
  } else if (work != Work::kFlush) {
    for (uint64_t i = 0; i < count; ++i) disk_[first + i].Begin(0);
    queue.Put<uint64_t>(data, first);
    queue.Put<uint32_t>(data + 8, static_cast<uint32_t>(count));
    queue.Put<uint32_t>(data + 12, work == Work::kWriteZeroes && random_() % 2 == 0 ? 1 : 0);
    chain.push_back({data, 16});
  } else {
    flushing_ = true;
    for (BlockHistory& block : disk_) block.FlushBegins();
  }
  chain.push_back({header + 16, 1, true});
  Offer(slot, chain);
}

void DiskLoad::Offer(const Slot& slot, const std::vector<Buffer>& chain) {
  const uint16_t head = HeadOf(slot);
  for (uint16_t i = 0; i < chain.size(); ++i) {
    const bool last = i + 1u == chain.size();
    const int flags = (last ? 0 : device::test::kNext) | (chain[i].writable ? device::test::kWrite : 0);
    function_->queue().SetDescriptor(
        static_cast<uint16_t>(head + i),
        {chain[i].address.value, chain[i].length, static_cast<uint16_t>(flags), static_cast<uint16_t>(head + i + 1)});
  }
  function_->queue().Offer(head);
}

void DiskLoad::Reap() {
  ASSERT_TRUE(process_.AwaitInterrupt(1));
  while (const auto used = function_->queue().TakeUsed()) {
    const auto slot =
        std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.busy && HeadOf(s) == used->id; });
    ASSERT_NE(slot, slots_.end());
    slot->busy = false;
    End(*slot);
  }
}

void DiskLoad::End(Slot& slot) {
  constexpr uint8_t kIoError = 1;
  const uint8_t status = function_->queue().Get<uint8_t>(Memory(slot) + 16);
  if (slot.work == Work::kFlush) flushing_ = false;
  const Fate fate = fates_ ? fates_(slot.work, slot.first, slot.count) : Fate::kSucceeds;
  const auto what = [&] {
    return "request of type " + std::to_string(TypeOf(slot.work)) + ", blocks " + std::to_string(slot.first) + " + " +
           std::to_string(slot.count);
  };
  if (fate == Fate::kFails || (fate == Fate::kEither && status != 0)) {
    EXPECT_EQ(status, kIoError) << what();
    ++failed_;
    return;
  }
  EXPECT_EQ(status, 0) << what();
  if (slot.work == Work::kFlush) {
    for (BlockHistory& block : disk_) block.Flushed();
  } else if (slot.work == Work::kRead) {
    ExpectHeld(slot);
  } else {
    for (uint64_t i = 0; i < slot.count; ++i) disk_[slot.first + i].Completed();
  }
}

void DiskLoad::ExpectHeld(const Slot& slot) {
  const std::string text =
      function_->queue().GetText(Memory(slot) + kDataAt, static_cast<uint32_t>(slot.count * kBlock));
  const auto bytes = std::as_bytes(std::span(text));
  for (uint64_t i = 0; i < slot.count; ++i) {
    ASSERT_TRUE(disk_[slot.first + i].Holds(BlockValue(bytes, i))) << "block " << slot.first + i;
  }
}

}  // namespace bulkhead::test
