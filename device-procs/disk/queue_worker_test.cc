// SPDX-License-Identifier: Apache-2.0
// Workers under a disk whose image has fewer channels than the disk has queues, and a header: on real files, with real
// threads and rings.
#include "device-procs/disk/queue_worker.h"

#include <capnp/message.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/raw_image.h"
#include "device-procs/disk/disk_driver.h"

namespace bulkhead::device {
namespace {

using test::DiskDriver;
using test::DiskDriverOptions;
using test::kBlkFlush;
using test::kBlkRead;
using test::kBlkWrite;

constexpr uint64_t kImageBytes = 16 << 20;
constexpr Gpa kData = DiskDriver::kData;
constexpr char kMagic = 'B';

// What the test may look at while the disk runs.
struct Counts {
  std::atomic<int> channels = 0;
  std::atomic<int> flushes = 0;
  std::atomic<int> flush_error = 0;
};

// A raw image whose first byte is its header, which tells whether it may be used.
class HeaderImage final : public BlockImage {
 public:
  HeaderImage(OwnFd file, unsigned max_channels, Counts& counts)
      : raw_(OpenRawImage(std::move(file), {})), max_channels_(max_channels), counts_(counts) {}

  const BlockGeometry& geometry() const override { return geometry_; }
  unsigned max_channels() const override { return max_channels_; }
  std::unique_ptr<BlockChannel> OpenChannel(IoRing& ring, Offload& offload) override {
    ++counts_.channels;
    return std::make_unique<Channel>(*this, ring, offload);
  }

 private:
  class Channel final : public BlockChannel {
   public:
    Channel(HeaderImage& image, IoRing& ring, Offload& offload)
        : image_(image), raw_(image.raw_->OpenChannel(ring, offload)) {}
    Task<Result<void>> Open() override {
      const int error = co_await ReadFrom(*raw_, 0, header_.data(), header_.size());
      if (error != 0) co_return ErrnoError(error, "'image': read its header");
      if (header_[0] != kMagic) co_return Error{EINVAL, "'image': not an image"};
      image_.geometry_ = image_.raw_->geometry();
      co_return Result<void>();
    }
    void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
      raw_->Read(offset, to, done);
    }
    void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
      raw_->Write(offset, from, done);
    }
    void Flush(BlockCompletion& done) override {
      ++image_.counts_.flushes;
      const int error = image_.counts_.flush_error;
      if (error != 0) return done.Completed(error);
      raw_->Flush(done);
    }
    void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
      raw_->Discard(offset, size_bytes, done);
    }
    void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) override {
      raw_->WriteZeroes(offset, size_bytes, unmap, done);
    }

   private:
    HeaderImage& image_;
    std::unique_ptr<BlockChannel> raw_;
    std::array<char, 512> header_{};
  };

  const std::unique_ptr<RawImage> raw_;
  const unsigned max_channels_;
  Counts& counts_;
  BlockGeometry geometry_;
};

class QueueWorkerTest : public testing::Test {
 protected:
  // A disk that is not open yet, on an unnamed file of a real file system.
  DiskDriver& Make(unsigned max_channels, uint16_t queues, char magic = kMagic) {
    std::string name = testing::TempDir() + "bulkhead-worker-XXXXXX";
    file_ = OwnFd(::mkostemp(name.data(), O_CLOEXEC));
    if (!file_.valid() || ::ftruncate(file_.get(), kImageBytes) != 0) ThrowErrno("make a test image");
    ::unlink(name.c_str());
    if (::pwrite(file_.get(), &magic, 1, 0) != 1) ThrowErrno("write a test image");
    auto image = std::make_unique<HeaderImage>(OrThrow(DuplicateFd(file_.get())), max_channels, counts_);
    disk_ = std::make_unique<DiskDriver>(memory_, std::move(image), DiskDriverOptions{.queues = queues});
    return *disk_;
  }
  std::string FileText(uint64_t offset, size_t size) {
    std::string text(size, '?');
    EXPECT_EQ(::pread(file_.get(), text.data(), size, static_cast<off_t>(offset)), static_cast<ssize_t>(size));
    return text;
  }

  // Writes blocks of this queue's own share of the disk, many at a time, and looks at them in the file.
  void WriteShare(uint16_t queue, unsigned queues) {
    constexpr unsigned kDepth = 64, kBlock = 4096, kRounds = 10;
    const Gpa base = kData + queue * 2ull * kDepth * kBlock;
    std::minstd_rand random(queue + 1u);
    for (unsigned round = 0; round < kRounds; ++round) {
      const uint64_t share = kImageBytes / kBlock / queues;
      const uint64_t first = queue * share + 1 + random() % (share - kDepth - 1);
      std::string text(kDepth * kBlock, '\0');
      for (char& byte : text) byte = static_cast<char>(random() >> 8);
      ASSERT_TRUE(memory_.Write(base, std::as_bytes(std::span(text))).ok());
      for (unsigned i = 0; i < kDepth; ++i) {
        disk_->Submit(queue, kBlkWrite, (first + i) * 8, {{base + i * kBlock, kBlock}});
        if (i % 16 == 15) disk_->Kick(queue);
      }
      disk_->Kick(queue);
      for (unsigned i = 0; i < kDepth; ++i) ASSERT_EQ(disk_->Wait(queue).status, 0);
      ASSERT_TRUE(FileText(first * kBlock, text.size()) == text) << "queue " << queue << " round " << round;
    }
  }
  void WriteAllShares(uint16_t queues, const std::function<void()>& meanwhile) {
    std::atomic<int> running = queues;
    std::vector<std::thread> threads;
    for (uint16_t i = 0; i < queues; ++i) {
      threads.emplace_back([this, i, queues, &running] {
        WriteShare(i, queues);
        --running;
      });
    }
    while (running != 0) meanwhile();
    for (std::thread& thread : threads) thread.join();
  }

  const GuestMemory memory_ = test::MakeGuestMemory(DiskDriver::kMemoryBytes);
  Counts counts_;
  OwnFd file_;
  std::unique_ptr<DiskDriver> disk_;
};

TEST_F(QueueWorkerTest, OneChannelServesAllQueues) {
  constexpr uint16_t kQueues = 4;
  DiskDriver& disk = Make(1, kQueues);
  EXPECT_EQ(counts_.channels, 1);
  disk.Start();
  WriteAllShares(kQueues, [] { std::this_thread::yield(); });
}

TEST_F(QueueWorkerTest, QueuesOfAWorkerInterruptThroughTheirOwnVectors) {
  DiskDriver& disk = Make(1, 3);
  disk.Start();
  for (const uint16_t queue : {2, 0, 1}) {
    EXPECT_EQ(disk.Do(kBlkFlush, 0, {}, queue), 0);
    uint64_t interrupts = 0;
    disk.WaitUntil([&] { return (interrupts += disk.function().Interrupts(static_cast<uint16_t>(queue + 1))) != 0; });
    EXPECT_EQ(interrupts, 1u);
    for (uint16_t vector = 0; vector < 4; ++vector) EXPECT_EQ(disk.function().Interrupts(vector), 0u) << vector;
  }
}

TEST_F(QueueWorkerTest, ChannelsAreNoMoreThanTheImageAllowsNorThanThereAreQueues) {
  Make(2, 3).Start();
  EXPECT_EQ(counts_.channels, 2);
  WriteAllShares(3, [] { std::this_thread::yield(); });
  counts_.channels = 0;
  Make(100, 3);
  EXPECT_EQ(counts_.channels, 3);
}

TEST_F(QueueWorkerTest, AllQueuesOfAWorkerStopTogether) {
  constexpr uint16_t kQueues = 3;
  DiskDriver& disk = Make(1, kQueues);
  disk.Start();
  WriteAllShares(kQueues, [&] {
    disk.model().Pause();
    std::array<uint16_t, kQueues> used;
    for (uint16_t i = 0; i < kQueues; ++i) used[i] = disk.ring(i).UsedIndex();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    for (uint16_t i = 0; i < kQueues; ++i) EXPECT_EQ(disk.ring(i).UsedIndex(), used[i]) << "paused";
    disk.model().Resume();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  });
}

TEST_F(QueueWorkerTest, NothingIsKnownOfTheImageUntilItIsOpened) {
  DiskDriver& disk = Make(1, 1);
  const auto capacity = [&] { return disk.function().ReadBar(virtio_pci::kDeviceConfig, 8); };
  EXPECT_EQ(capacity(), 0u);
  disk.Open();
  EXPECT_EQ(capacity(), kImageBytes / 512);
}

TEST_F(QueueWorkerTest, AnImageThatCannotBeOpenedIsNamedByTheError) {
  DiskDriver& disk = Make(1, 2, 'x');
  const Result<void> opened = disk.model().ReadInput();
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().message, "disk 'image': not an image");
  disk.model().Pause();
  EXPECT_EQ(counts_.flushes, 0) << "what is not open has nothing to flush";
}

TEST_F(QueueWorkerTest, APauseMakesWhatWasWrittenDurable) {
  DiskDriver& disk = Make(2, 3);
  disk.Start();
  EXPECT_EQ(disk.Do(kBlkWrite, 8, {{kData, 512}}), 0);
  EXPECT_EQ(counts_.flushes, 0);
  disk.model().Pause();
  EXPECT_EQ(counts_.flushes, 2) << "on each channel";
  disk.model().Resume();
  EXPECT_EQ(disk.Do(kBlkWrite, 8, {{kData, 512}}, 2), 0) << "and the disk goes on";
  disk.function().SetStatus(0);
  EXPECT_EQ(counts_.flushes, 2) << "a reset waits for no disk";
  disk.model().Pause();
  EXPECT_EQ(counts_.flushes, 4) << "but what was written before it is not forgotten";
}

TEST_F(QueueWorkerTest, AFailedFlushAtAPauseIsLogged) {
  DiskDriver& disk = Make(1, 1);
  disk.Start();
  counts_.flush_error = ENOSPC;
  disk.model().Pause();
  ASSERT_EQ(disk.log().size(), 1u);
  EXPECT_EQ(disk.log()[0], "disk image: flush failed: No space left on device");
  counts_.flush_error = 0;
  disk.model().Resume();
  EXPECT_EQ(disk.Do(kBlkFlush, 0, {}), 0);
}

TEST_F(QueueWorkerTest, StopsAndStartsInAnyOrderLeaveTheDiskWorking) {
  DiskDriver& disk = Make(1, 2);
  disk.Start();
  std::minstd_rand random(1);
  for (int round = 0; round < 200; ++round) {
    for (uint16_t queue = 0; queue < 2; ++queue) {
      for (unsigned i = 0; i < 8; ++i) disk.Submit(queue, kBlkRead, 8 * i, {{kData + i * 4096, 4096, true}});
      disk.Kick(queue);
    }
    switch (random() % 4) {
      case 0:
        disk.model().Pause();
        disk.model().Resume();
        break;
      case 1:
        disk.model().Pause();
        disk.model().Pause();
        disk.SetUp();
        disk.model().Resume();
        break;
      case 2:
        disk.function().SetStatus(0);
        disk.function().SetStatus(0);
        break;
      default:
        break;
    }
    disk.SetUp();
    for (uint16_t queue = 0; queue < 2; ++queue) ASSERT_EQ(disk.Do(kBlkFlush, 0, {}, queue), 0) << round;
  }
}

// New limits for the disk, as its user gives them while it runs.
void SetLimits(DiskDriver& disk, uint64_t bytes_per_second, uint64_t operations_per_second) {
  capnp::MallocMessageBuilder message;
  auto limits = message.initRoot<control::DiskThrottle>();
  limits.setBytesPerSecond(bytes_per_second);
  limits.setOperationsPerSecond(operations_per_second);
  disk.model().SetThrottle(limits);
}

TEST_F(QueueWorkerTest, AThrottledRequestWaitsInItsQueueUntilTheLimitIsLifted) {
  DiskDriver& disk = Make(2, 2);
  disk.Start();
  SetLimits(disk, 1, 0);
  EXPECT_EQ(disk.Do(kBlkWrite, 8, {{kData, 4096}}), 0) << "nothing is owed yet";
  for (uint16_t queue = 0; queue < 2; ++queue) {
    disk.Submit(queue, kBlkWrite, 16, {{kData, 4096}});
    disk.Kick(queue);
  }
  // Neither keeps the device from stopping: the queues are the whole disk's, and what waits has not been taken.
  disk.model().Pause();
  disk.model().Resume();
  for (uint16_t queue = 0; queue < 2; ++queue) EXPECT_FALSE(disk.Take(queue)) << "more than an hour too early";
  SetLimits(disk, 0, 0);
  for (uint16_t queue = 0; queue < 2; ++queue) EXPECT_EQ(disk.Wait(queue).status, 0);
}

TEST_F(QueueWorkerTest, AThrottledQueueGoesOnByItself) {
  constexpr int kRequests = 8;
  DiskDriver& disk = Make(1, 1);
  disk.Start();
  SetLimits(disk, 0, 20);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRequests; ++i) disk.Submit(0, kBlkRead, 8, {{kData, 512, true}});
  disk.Kick(0);
  for (int i = 0; i < kRequests; ++i) EXPECT_EQ(disk.Wait(0).status, 0);
  // Two and the one that owes for them at once, 50 ms for each of the others.
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50 * (kRequests - 3)));
}

}  // namespace
}  // namespace bulkhead::device
