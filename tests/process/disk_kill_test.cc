// SPDX-License-Identifier: Apache-2.0
// The real disk process, killed in the middle of its work on a qcow2 image again and again: QEMU finds nothing wrong
// with the image but leaks, every block has what a flush promised or what came after it, and the next process goes on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <fstream>
#include <random>

#include "device-procs/common/virtio_pci_registers.h"
#include "device-procs/common/virtqueue_driver.h"
#include "tests/process/device_process.h"
#include "tests/process/harness.h"

namespace bulkhead::test {
namespace {

using device::test::Buffer;
using device::test::QueueDriver;

constexpr uint64_t kBlock = 512;  // no cluster is smaller: what is written whole or not at all
constexpr uint64_t kBlocks = 8192;
constexpr uint64_t kMostBlocks = 128;
constexpr uint16_t kChain = 4;  // descriptors that a request may take
// Behind a request's header and status. On a block's boundary: the kernel, told to kill, stops to copy where it meets a
// page that is not there, which is inside of a block that lies on two.
constexpr uint64_t kDataAt = kBlock;
constexpr uint64_t kFeatures =
    device::test::kVersion1 | device::FeatureBit(9) | device::FeatureBit(13) | device::FeatureBit(14);
enum Type : uint32_t { kWrite = 1, kFlush = 4, kDiscard = 11, kWriteZeroes = 13 };

// What a block may have after a kill: what it had at the last flush that was waited for, or anything written since. A
// value fills its block; 0 is what zeroes and discards leave.
class BlockHistory {
 public:
  explicit BlockHistory(uint64_t value = 0) : values_{value} {}
  void Begin(uint64_t value) { values_.push_back(value); }
  void Completed() { completed_ = values_.size() - 1; }
  void FlushBegins() { promised_ = completed_; }
  void Flushed() {
    values_.erase(values_.begin(), values_.begin() + static_cast<ptrdiff_t>(promised_));
    completed_ -= promised_;
    promised_ = 0;
  }
  bool Allows(uint64_t value) const { return std::find(values_.begin(), values_.end(), value) != values_.end(); }

 private:
  std::deque<uint64_t> values_;
  size_t completed_ = 0;  // the last one that was waited for
  size_t promised_ = 0;
};

class Function final : public device::test::FunctionRegisters {
 public:
  static constexpr uint16_t kQueueSize = 64;

  explicit Function(DeviceProcess& process) : process_(process), queue_(process.memory(), Gpa{0x10000}, kQueueSize) {
    EXPECT_TRUE(Negotiate(kFeatures));
    SetUpQueue(0, queue_.layout());
    EnableMsix(2);
    GoLive();
  }
  QueueDriver& queue() { return queue_; }

 private:
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override {
    return process_.channel().Read(region, offset, width);
  }
  device::WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override {
    process_.channel().Write(region, offset, width, value);
    return {};
  }

  DeviceProcess& process_;
  QueueDriver queue_;
};

// Requests of all kinds to one process, several at a time, no two to the same block, until it is killed.
class Load {
 public:
  Load(DeviceProcess& process, std::vector<BlockHistory>& disk, uint64_t& next_value, std::mt19937_64& random)
      : process_(process), function_(process), disk_(disk), next_value_(next_value), random_(random) {}

  // Ends with requests under way.
  void Run(unsigned requests) {
    for (unsigned i = 0; i < requests; ++i) {
      while (std::none_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.busy; })) Reap();
      Start();
      process_.Kick(0);
    }
  }
  // Flushes, once all else has ended.
  void Settle() {
    while (flushing_ || std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.busy; })) Reap();
    Begin(slots_[0], kFlush, 0, 0);
    process_.Kick(0);
    while (flushing_) Reap();
  }

 private:
  struct Slot {
    bool busy = false;
    uint32_t type = 0;
    uint64_t first = 0;
    uint64_t count = 0;
  };

  uint64_t IndexOf(const Slot& slot) const { return static_cast<uint64_t>(&slot - slots_.data()); }
  Gpa Memory(const Slot& slot) const { return Gpa{0x100000} + IndexOf(slot) * (kMostBlocks + 1) * kBlock; }
  uint16_t HeadOf(const Slot& slot) const { return static_cast<uint16_t>(IndexOf(slot) * kChain); }
  bool IsFree(uint64_t first, uint64_t count) const {
    return std::none_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
      return slot.busy && first < slot.first + slot.count && slot.first < first + count;
    });
  }

  void Start() {
    Slot& slot = *std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.busy; });
    const uint64_t kind = random_() % 20;
    if (kind == 0 && !flushing_) return Begin(slot, kFlush, 0, 0);
    uint64_t first = 0;
    uint64_t count = 0;
    do {
      count = 1 + random_() % (random_() % 4 == 0 ? kMostBlocks : 16);
      first = random_() % (kBlocks - count);
      // Parts of clusters are not discarded.
      if (kind == 1) first = first / kMostBlocks * kMostBlocks;
      if (kind == 1) count = kMostBlocks;
    } while (!IsFree(first, count));
    Begin(slot, kind == 1 ? kDiscard : kind < 4 ? kWriteZeroes : kWrite, first, count);
  }

  void Begin(Slot& slot, uint32_t type, uint64_t first, uint64_t count) {
    slot = {.busy = true, .type = type, .first = first, .count = count};
    const Gpa header = Memory(slot);
    const Gpa data = header + kDataAt;
    QueueDriver& queue = function_.queue();
    queue.Put(header, type);
    queue.Put<uint32_t>(header + 4, 0);
    queue.Put<uint64_t>(header + 8, type == kWrite ? first : 0);
    queue.Put<uint8_t>(header + 16, 0xFF);
    std::vector<Buffer> chain{{header, 16}};
    if (type == kWrite) {
      std::vector<uint64_t> words;
      for (uint64_t i = 0; i < count; ++i) {
        disk_[first + i].Begin(++next_value_);
        words.insert(words.end(), kBlock / sizeof(uint64_t), next_value_);
      }
      queue.PutText(data, {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t)});
      chain.push_back({data, static_cast<uint32_t>(count * kBlock)});
    } else if (type != kFlush) {
      for (uint64_t i = 0; i < count; ++i) disk_[first + i].Begin(0);
      queue.Put<uint64_t>(data, first);
      queue.Put<uint32_t>(data + 8, static_cast<uint32_t>(count));
      queue.Put<uint32_t>(data + 12, type == kWriteZeroes && random_() % 2 == 0 ? 1 : 0);
      chain.push_back({data, 16});
    } else {
      flushing_ = true;
      for (BlockHistory& block : disk_) block.FlushBegins();
    }
    chain.push_back({header + 16, 1, true});
    Offer(slot, chain);
  }

  // In descriptors of the slot's own: requests end in any order.
  void Offer(const Slot& slot, const std::vector<Buffer>& chain) {
    const uint16_t head = HeadOf(slot);
    for (uint16_t i = 0; i < chain.size(); ++i) {
      const bool last = i + 1u == chain.size();
      const int flags = (last ? 0 : device::test::kNext) | (chain[i].writable ? device::test::kWrite : 0);
      function_.queue().SetDescriptor(
          static_cast<uint16_t>(head + i),
          {chain[i].address.value, chain[i].length, static_cast<uint16_t>(flags), static_cast<uint16_t>(head + i + 1)});
    }
    function_.queue().Offer(head);
  }

  // Waits for the end of something.
  void Reap() {
    ASSERT_TRUE(process_.AwaitInterrupt(1));
    while (const auto used = function_.queue().TakeUsed()) {
      const auto slot =
          std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.busy && HeadOf(s) == used->id; });
      ASSERT_NE(slot, slots_.end());
      EXPECT_EQ(function_.queue().Get<uint8_t>(Memory(*slot) + 16), 0) << "request of type " << slot->type;
      slot->busy = false;
      if (slot->type == kFlush) {
        flushing_ = false;
        for (BlockHistory& block : disk_) block.Flushed();
      } else {
        for (uint64_t i = 0; i < slot->count; ++i) disk_[slot->first + i].Completed();
      }
    }
  }

  DeviceProcess& process_;
  Function function_;
  std::vector<BlockHistory>& disk_;
  uint64_t& next_value_;
  std::mt19937_64& random_;
  std::array<Slot, Function::kQueueSize / kChain> slots_;
  bool flushing_ = false;
};

class DiskKill : public testing::TestWithParam<const char*> {
 protected:
  int Shell(const std::string& command) const {
    return std::system(("cd " + dir_.path() + " && { " + command + "; } >shell.log 2>&1").c_str());
  }
  // A base of half the size, and an image over it.
  void Make() {
    disk_.assign(kBlocks, BlockHistory(0));
    std::ofstream base(dir_.Path("base"), std::ios::binary);
    for (uint64_t i = 0; i < kBlocks / 2; ++i) {
      const std::vector<uint64_t> words(kBlock / sizeof(uint64_t), ++next_value_);
      base.write(reinterpret_cast<const char*>(words.data()), kBlock);
      disk_[i] = BlockHistory(next_value_);
    }
    base.close();
    ASSERT_EQ(Shell(std::string("qemu-img create -f qcow2 -b base -F raw -o ") + GetParam() + " top " +
                    std::to_string(kBlocks * kBlock)),
              0)
        << ReadFile(dir_.Path("shell.log"));
  }
  std::unique_ptr<DeviceProcess> StartProcess() {
    return std::make_unique<DeviceProcess>(
        *io_, DeviceProcess::Options{
                  .configure =
                      [this](control::VmConfig::Builder vm) {
                        auto disk = vm.initDisks(1)[0];
                        disk.setFile(MakeFile(OwnFd(::open(dir_.Path("top").c_str(), O_RDWR | O_CLOEXEC))));
                        disk.setName("top");
                        disk.setFormat(control::ImageFormat::QCOW2);
                        auto base = disk.initBacking(1)[0];
                        base.setFile(MakeFile(OwnFd(::open(dir_.Path("base").c_str(), O_RDONLY | O_CLOEXEC))));
                        base.setName("base");
                      },
                  .plan = broker::PlanDisks});
  }
  // After a kill. What is there now is what the next round starts from.
  void Judge() {
    const int checked = Shell("qemu-img check -f qcow2 top; s=$?; [ $s = 0 ] || [ $s = 3 ]");
    ASSERT_EQ(checked, 0) << ReadFile(dir_.Path("shell.log"));
    ASSERT_EQ(Shell("qemu-img convert -f qcow2 -O raw top raw"), 0) << ReadFile(dir_.Path("shell.log"));
    const std::string raw = ReadFile(dir_.Path("raw"));
    ASSERT_EQ(raw.size(), kBlocks * kBlock);
    for (uint64_t i = 0; i < kBlocks; ++i) {
      std::vector<uint64_t> words(kBlock / sizeof(uint64_t));
      std::memcpy(words.data(), raw.data() + i * kBlock, kBlock);
      ASSERT_EQ(std::count(words.begin(), words.end(), words[0]), static_cast<ptrdiff_t>(words.size()))
          << "block " << i << " is torn";
      ASSERT_TRUE(disk_[i].Allows(words[0])) << "block " << i << " has the value " << words[0];
      disk_[i] = BlockHistory(words[0]);
    }
  }

  TempDir dir_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::vector<BlockHistory> disk_;
  uint64_t next_value_ = 0;
  std::mt19937_64 random_{1};
};

TEST_P(DiskKill, LeavesAnImageWithWhatFlushesPromised) {
  constexpr int kKills = 8;
  Make();
  for (int i = 0; i < kKills && !HasFatalFailure(); ++i) {
    SCOPED_TRACE("kill " + std::to_string(i));
    const auto process = StartProcess();
    Load load(*process, disk_, next_value_, random_);
    load.Run(static_cast<unsigned>(1 + random_() % 200));
    ::usleep(static_cast<useconds_t>(random_() % 2000));
    ASSERT_EQ(::kill(process->pid(), SIGKILL), 0);
    EXPECT_NE(process->AwaitDeath().find("signal 9"), std::string::npos);
    Judge();
  }
  // One that is let finish loses nothing, though it is killed after that as well.
  const auto process = StartProcess();
  Load load(*process, disk_, next_value_, random_);
  load.Run(100);
  load.Settle();
  ASSERT_EQ(::kill(process->pid(), SIGKILL), 0);
  (void)process->AwaitDeath();
  Judge();
}

INSTANTIATE_TEST_SUITE_P(Layouts, DiskKill,
                         testing::Values("cluster_size=64k", "cluster_size=4k,refcount_bits=32", "cluster_size=512"));

}  // namespace
}  // namespace bulkhead::test
