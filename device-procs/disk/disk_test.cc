// SPDX-License-Identifier: Apache-2.0
// The disk as a guest sees it, on real files.
#include <capnp/message.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdlib>
#include <random>

#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/block/qcow2/create.h"
#include "device-procs/common/block/qcow2/memory_file.h"
#include "device-procs/common/block/raw_image.h"
#include "device-procs/disk/disk_driver.h"

namespace bulkhead::device {
namespace {

using test::Buffer;
using test::DiskDriver;
using test::DiskDriverOptions;
using test::kBlkDiscard;
using test::kBlkFlush;
using test::kBlkGetId;
using test::kBlkRead;
using test::kBlkWrite;
using test::kBlkZeroes;

constexpr uint64_t kImageBytes = 16 << 20;
constexpr Gpa kData = DiskDriver::kData;
constexpr int kOk = 0, kIoError = 1, kUnsupported = 2;

// An unnamed file on a real file system.
OwnFd MakeFile(uint64_t size_bytes, int flags = 0) {
  std::string name = testing::TempDir() + "bulkhead-disk-XXXXXX";
  OwnFd fd(::mkostemp(name.data(), O_CLOEXEC | flags));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) ThrowErrno("make a test image");
  ::unlink(name.c_str());
  return fd;
}

// With every block allocated, and O_DIRECT where the file system has it.
OwnFd MakeFilledFile() {
  OwnFd file = MakeFile(kImageBytes);
  const std::string text(kImageBytes, 'x');
  if (::pwrite(file.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::fdatasync(file.get()) != 0) {
    ThrowErrno("fill a test image");
  }
  static_cast<void>(::fcntl(file.get(), F_SETFL, O_DIRECT));
  return file;
}

// On tmpfs, which has holes but no zero ranges.
OwnFd MakeMemoryFile(uint64_t size_bytes) {
  OwnFd fd(::memfd_create("image", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) ThrowErrno("make a test image");
  return fd;
}

std::string Pattern(size_t size, unsigned seed) {
  std::minstd_rand random(seed);
  std::string text(size, '\0');
  for (char& byte : text) byte = static_cast<char>(random() >> 8);
  return text;
}

class DiskTest : public testing::Test {
 protected:
  DiskDriver& Open(OwnFd file, bool read_only = false, bool direct = false, DiskDriverOptions options = {}) {
    file_ = OrThrow(DuplicateFd(file.get()));
    return Open(OpenRawImage(std::move(file), {.read_only = read_only, .direct_io = direct}), options);
  }
  DiskDriver& Open(std::unique_ptr<BlockImage> image, DiskDriverOptions options = {}) {
    disk_ = std::make_unique<DiskDriver>(memory_, std::move(image), options);
    disk_->Start();
    return *disk_;
  }
  void Put(Gpa address, std::string_view text) { OrThrow(memory_.Write(address, std::as_bytes(std::span(text)))); }
  std::string Get(Gpa address, size_t size) {
    std::string text(size, '\0');
    OrThrow(memory_.Read(address, std::as_writable_bytes(std::span(text))));
    return text;
  }
  std::string FileText(uint64_t offset, size_t size) {
    ::fcntl(file_.get(), F_SETFL, 0);
    std::string text(size, '\0');
    EXPECT_EQ(::pread(file_.get(), text.data(), size, static_cast<off_t>(offset)), static_cast<ssize_t>(size));
    return text;
  }
  void FillFile(char value) {
    const std::string text(kImageBytes, value);
    ASSERT_EQ(::pwrite(file_.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  uint64_t BlocksInUse() {
    struct stat status;
    EXPECT_EQ(::fstat(file_.get(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks);
  }
  uint64_t Config(uint64_t offset, uint8_t width) {
    return disk_->function().ReadBar(virtio_pci::kDeviceConfig + offset, width);
  }

  const GuestMemory memory_ = test::MakeGuestMemory(DiskDriver::kMemoryBytes);
  OwnFd file_;
  std::unique_ptr<DiskDriver> disk_;
};

TEST_F(DiskTest, WritesReachTheFileAndReadsComeFromIt) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  const std::string text = Pattern(8192, 1);
  Put(kData, text);
  EXPECT_EQ(disk.Do(kBlkWrite, 5, {{kData, 8192}}), kOk);
  EXPECT_EQ(FileText(5 * 512, 8192), text);
  const uint16_t head = disk.Submit(0, kBlkRead, 5, {{kData + 65536, 8192, true}});
  disk.Kick(0);
  const test::BlkDone done = disk.Wait(0);
  EXPECT_EQ(done.head, head);
  EXPECT_EQ(done.status, kOk);
  EXPECT_EQ(done.length, 8193u) << "data and status";
  EXPECT_EQ(Get(kData + 65536, 8192), text);
}

TEST_F(DiskTest, RequestsInPiecesOfAnyLengthArriveWhole) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  const std::string text = Pattern(1536, 2);
  Put(kData, text);
  EXPECT_EQ(disk.Do(kBlkWrite, 0, {{kData, 1}, {kData + 1, 700}, {kData + 701, 0}, {kData + 701, 835}}), kOk);
  EXPECT_EQ(FileText(0, 1536), text);
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{kData + 5001, 1000, true}, {kData + 6001, 536, true}}), kOk);
  EXPECT_EQ(Get(kData + 5001, 1536), text);
}

TEST_F(DiskTest, EmptyTransferAndFlushComplete) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  EXPECT_EQ(disk.Do(kBlkRead, 0, {}), kOk);
  EXPECT_EQ(disk.Do(kBlkFlush, 0, {}), kOk);
}

TEST_F(DiskTest, DirectIoTakesBuffersOfAnyAlignment) {
  OwnFd file = MakeFile(kImageBytes);
  if (::fcntl(file.get(), F_SETFL, O_DIRECT) != 0) GTEST_SKIP() << "the file system has no O_DIRECT";
  DiskDriver& disk = Open(std::move(file), false, true);
  ASSERT_NE(::fcntl(file_.get(), F_GETFL) & O_DIRECT, 0);
  // Larger than a bounce buffer, at an odd address, in odd pieces; and one that needs no bounce.
  const uint32_t size = 700 * 1024;
  const std::string text = Pattern(size, 3);
  Put(kData + 3, text);
  EXPECT_EQ(disk.Do(kBlkWrite, 8, {{kData + 3, 1000}, {kData + 1003, size - 1000}}), kOk);
  EXPECT_EQ(disk.Do(kBlkRead, 8, {{kData + (4 << 20), size, true}}), kOk);
  EXPECT_EQ(Get(kData + (4 << 20), size), text);
  EXPECT_EQ(disk.Do(kBlkRead, 8, {{kData + (8 << 20) + 77, 513, true}, {kData + (8 << 20) + 590, size - 513, true}}),
            kOk);
  EXPECT_EQ(Get(kData + (8 << 20) + 77, size), text);
}

TEST_F(DiskTest, MoreUnalignedRequestsThanBounceBuffersAllComplete) {
  OwnFd file = MakeFile(kImageBytes);
  if (::fcntl(file.get(), F_SETFL, O_DIRECT) != 0) GTEST_SKIP() << "the file system has no O_DIRECT";
  DiskDriver& disk = Open(std::move(file), false, true);
  constexpr unsigned kRequests = 80;
  const std::string text = Pattern(kRequests * 4096, 4);
  Put(kData + 1, text);
  for (unsigned i = 0; i < kRequests; ++i) disk.Submit(0, kBlkWrite, 8 * i, {{kData + 1 + 4096 * i, 4096}});
  disk.Kick(0);
  for (unsigned i = 0; i < kRequests; ++i) EXPECT_EQ(disk.Wait(0).status, kOk);
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{kData + (8 << 20), kRequests * 4096, true}}), kOk);
  EXPECT_EQ(Get(kData + (8 << 20), text.size()), text);
}

TEST_F(DiskTest, DiscardGivesSpaceBack) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  FillFile('x');
  ASSERT_EQ(disk.Do(kBlkFlush, 0, {}), kOk);
  const uint64_t before = BlocksInUse();
  EXPECT_EQ(disk.DoSegments(kBlkDiscard, {{2048, 8192, 0}, {16384, 8192, 0}}), kOk);
  if (BlocksInUse() == before) GTEST_SKIP() << "the file system cannot punch holes";
  EXPECT_LE(BlocksInUse(), before - 16384 + 64);
  EXPECT_EQ(FileText(2047 * 512, 512), std::string(512, 'x')) << "nothing around it is touched";
  EXPECT_EQ(FileText((2048 + 8192) * 512, 512), std::string(512, 'x'));
}

void ExpectZeroes(const std::string& text, uint64_t begin, uint64_t end) {
  for (uint64_t i = 0; i < text.size(); ++i) {
    const char expected = i >= begin && i < end ? '\0' : 'x';
    ASSERT_EQ(text[i], expected) << "at byte " << i;
  }
}

TEST_F(DiskTest, WriteZeroesZeroesExactlyItsRange) {
  for (const uint32_t unmap : {0u, 1u}) {
    DiskDriver& disk = Open(MakeFile(kImageBytes));
    FillFile('x');
    EXPECT_EQ(disk.DoSegments(kBlkZeroes, {{1, 9, unmap}, {10, 6, unmap}}), kOk);
    ExpectZeroes(FileText(0, 65536), 512, 16 * 512);
  }
}

TEST_F(DiskTest, WriteZeroesWorksWhereTheFileSystemHasNone) {
  DiskDriver& disk = Open(MakeMemoryFile(kImageBytes));
  FillFile('x');
  // Not a multiple of the zero buffer, and the second time the device knows.
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(disk.DoSegments(kBlkZeroes, {{1, 10001, 0}}), kOk);
    ExpectZeroes(FileText(0, 6 << 20), 512, 10002 * 512);
  }
  EXPECT_EQ(disk.DoSegments(kBlkZeroes, {{10002, 1, 1}}), kOk);
  ExpectZeroes(FileText(0, 6 << 20), 512, 10003 * 512);
}

TEST_F(DiskTest, IdIsPaddedWithZeroes) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  Put(kData, std::string(20, 'x'));
  EXPECT_EQ(disk.Do(kBlkGetId, 0, {{kData, 20, true}}), kOk);
  EXPECT_EQ(Get(kData, 20), std::string("test-disk") + std::string(11, '\0'));
}

TEST_F(DiskTest, ReadOnlyDiskIsOfferedAsSuchAndStaysUnchanged) {
  OwnFd file = MakeFile(kImageBytes);
  OwnFd read_only(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  if (!read_only.valid()) GTEST_SKIP() << "/proc is not there";
  DiskDriver& disk = Open(std::move(read_only), true);
  const uint64_t features = disk.function().DeviceFeatures();
  EXPECT_NE(features & FeatureBit(5), 0u);
  EXPECT_EQ(features & (FeatureBit(13) | FeatureBit(14)), 0u);
  Put(kData, std::string(512, 'x'));
  EXPECT_EQ(disk.Do(kBlkWrite, 0, {{kData, 512}}), kIoError);
  EXPECT_EQ(disk.DoSegments(kBlkZeroes, {{0, 1, 0}}), kUnsupported);
  EXPECT_EQ(disk.Do(kBlkFlush, 0, {}), kOk);
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{kData, 512, true}}), kOk);
  EXPECT_EQ(Get(kData, 512), std::string(512, '\0'));
}

TEST_F(DiskTest, FileThatBecameShorterGivesIoErr) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  ASSERT_EQ(::ftruncate(file_.get(), 4096 + 512), 0);
  EXPECT_EQ(disk.Do(kBlkRead, 8, {{kData, 4096, true}}), kIoError);
  EXPECT_EQ(disk.Do(kBlkRead, 800, {{kData, 512, true}}), kIoError);
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{kData, 4096, true}}), kOk);
}

TEST_F(DiskTest, FullHostFileSystemGivesIoErrAndALogLine) {
  OwnFd full(::open("/dev/full", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  DiskDriver& disk = Open(std::make_unique<RawImage>(std::move(full), BlockGeometry{.size_bytes = 1 << 20},
                                                     BufferAlignment{}, PastEnd::kError));
  EXPECT_EQ(disk.Do(kBlkWrite, 0, {{kData, 512}}), kIoError);
  ASSERT_EQ(disk.log().size(), 1u);
  EXPECT_NE(disk.log()[0].find("No space left on device"), std::string::npos) << disk.log()[0];
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{kData, 512, true}}), kOk) << "the disk goes on";
}

TEST_F(DiskTest, ConfigurationDescribesTheImage) {
  Open(MakeFile(kImageBytes + 300), false, false, {.queues = 3});
  EXPECT_EQ(Config(0, 8), kImageBytes / 512) << "a last part of a sector is left out";
  EXPECT_EQ(Config(12, 4), 254u);
  EXPECT_EQ(Config(20, 4), 512u);
  EXPECT_EQ(Config(24, 1), 3u) << "physical blocks of 4096";
  EXPECT_EQ(Config(34, 2), 3u);
  EXPECT_EQ(Config(36, 4), kMaxSegmentSectors);
  EXPECT_EQ(Config(40, 4), kMaxSegments);
  EXPECT_EQ(Config(56, 1), 1u);
  EXPECT_EQ(Config(60, 4), 0u);
}

TEST_F(DiskTest, OnlyTheCacheModeCanBeWritten) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  const auto write = [&](uint64_t offset, uint8_t width, uint64_t value) {
    disk.function().WriteBar(virtio_pci::kDeviceConfig + offset, width, value);
  };
  for (uint64_t offset = 0; offset < 60; ++offset) {
    if (offset != 32) write(offset, 1, 0xFF);
  }
  write(32, 1, 7);
  EXPECT_EQ(Config(0, 8), kImageBytes / 512);
  EXPECT_EQ(Config(32, 1), 1u);
  write(32, 1, 0);
  EXPECT_EQ(Config(32, 1), 0u);
  EXPECT_EQ(disk.Do(kBlkWrite, 0, {{kData, 512}}), kOk);
  ASSERT_NO_FATAL_FAILURE(disk.SetUp());
  EXPECT_EQ(Config(32, 1), 1u) << "a reset brings the cache back";
}

TEST_F(DiskTest, CompletionInterruptsThroughTheQueuesVector) {
  DiskDriver& disk = Open(MakeFile(kImageBytes), false, false, {.queues = 2});
  EXPECT_EQ(disk.Do(kBlkFlush, 0, {}, 1), kOk);
  uint64_t interrupts = 0;
  disk.WaitUntil([&] { return (interrupts += disk.function().Interrupts(2)) != 0; });
  EXPECT_EQ(interrupts, 1u);
  EXPECT_EQ(disk.function().Interrupts(1), 0u);
}

TEST_F(DiskTest, KicksThatTheDeviceAsksForAreEnough) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  for (int round = 0; round < 2000; ++round) {
    disk.Submit(0, kBlkGetId, 0, {{kData, 20, true}});
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if ((disk.ring(0).UsedFlags() & 1) == 0) disk.Kick(0);  // VIRTQ_USED_F_NO_NOTIFY
    ASSERT_EQ(disk.Wait(0).status, kOk) << round;
  }
}

TEST_F(DiskTest, KicksThatTheDeviceAsksForByEventIndexAreEnough) {
  DiskDriver& disk = Open(MakeFile(kImageBytes), false, false, {.event_index = true});
  for (int round = 0; round < 2000; ++round) {
    const uint16_t before = disk.ring(0).available_index();
    disk.Submit(0, kBlkGetId, 0, {{kData, 20, true}});
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (disk.ring(0).AvailableEvent() == before) disk.Kick(0);
    ASSERT_EQ(disk.Wait(0).status, kOk) << round;
  }
}

TEST_F(DiskTest, KickDuringAPauseIsSeenOnResume) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  disk.model().Pause();
  disk.Submit(0, kBlkFlush, 0, {});
  disk.Kick(0);
  EXPECT_FALSE(disk.Take(0));
  disk.model().Resume();
  EXPECT_EQ(disk.Wait(0).status, kOk);
}

TEST_F(DiskTest, DataOutsideMemoryGetsIoErr) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  const Gpa end{DiskDriver::kMemoryBytes - 256};
  EXPECT_EQ(disk.Do(kBlkRead, 0, {{end, 512, true}}), kIoError);
  EXPECT_EQ(disk.Do(kBlkWrite, 0, {{end, 512}}), kIoError);
}

TEST_F(DiskTest, BrokenQueueAsksForResetAndWorksAfterOne) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  disk.ring(0).SetAvailableIndex(5000);
  disk.Kick(0);
  disk.WaitUntil([&] { return (disk.function().Status() & test::kNeedsReset) != 0; });
  disk.SetUp();
  EXPECT_EQ(disk.function().Status() & test::kNeedsReset, 0);
  EXPECT_EQ(disk.Do(kBlkFlush, 0, {}), kOk);
}

TEST_F(DiskTest, ResetLeavesNothingInFlight) {
  // Past the page cache, where the file system can: else most requests are done before the reset comes.
  DiskDriver& disk = Open(MakeFilledFile(), false, true, {.queues = 2});
  for (int round = 0; round < 20; ++round) {
    for (uint16_t queue = 0; queue < 2; ++queue) {
      for (unsigned i = 0; i < 80; ++i) {
        disk.Submit(queue, kBlkRead, 128 * i, {{kData + (queue * 80 + i) * 65536ull, 65536, true}});
      }
      disk.Kick(queue);
    }
    disk.function().SetStatus(0);
    const uint16_t used[] = {disk.ring(0).UsedIndex(), disk.ring(1).UsedIndex()};
    const std::string marks(512, 'm');
    for (unsigned i = 0; i < 160; ++i) Put(kData + i * 65536ull, marks);
    std::this_thread::yield();
    EXPECT_EQ(disk.ring(0).UsedIndex(), used[0]);
    EXPECT_EQ(disk.ring(1).UsedIndex(), used[1]);
    disk.SetUp();
    EXPECT_EQ(disk.Do(kBlkFlush, 0, {}, 0), kOk);
    EXPECT_EQ(disk.Do(kBlkFlush, 0, {}, 1), kOk);
    for (unsigned i = 0; i < 160; ++i) ASSERT_EQ(Get(kData + i * 65536ull, 512), marks) << "written after the reset";
  }
}

// Writes and reads back blocks of its own share of the disk, many at a time, and checks every byte.
void Exercise(DiskDriver& disk, const GuestMemory& memory, uint16_t queue, unsigned queues) {
  constexpr unsigned kDepth = 64, kBlock = 4096, kRounds = 30;
  std::minstd_rand random(queue + 1u);
  const Gpa base = kData + queue * 4ull * kDepth * kBlock;
  const uint64_t share = kImageBytes / kBlock / queues;
  for (unsigned round = 0; round < kRounds; ++round) {
    const uint64_t first = queue * share + random() % (share - kDepth);
    const std::string text = Pattern(kDepth * kBlock, static_cast<unsigned>(random()));
    ASSERT_TRUE(memory.Write(base, std::as_bytes(std::span(text))).ok());
    for (const uint32_t type : {kBlkWrite, kBlkRead}) {
      const Gpa from = type == kBlkWrite ? base : base + kDepth * kBlock;
      for (unsigned i = 0; i < kDepth; ++i) {
        disk.Submit(queue, type, (first + i) * 8, {{from + i * kBlock, kBlock, type == kBlkRead}});
        if (i % 16 == 15) disk.Kick(queue);
      }
      for (unsigned i = 0; i < kDepth; ++i) ASSERT_EQ(disk.Wait(queue).status, kOk);
    }
    std::string back(text.size(), '\0');
    ASSERT_TRUE(memory.Read(base + kDepth * kBlock, std::as_writable_bytes(std::span(back))).ok());
    ASSERT_TRUE(back == text) << "queue " << queue << " round " << round;
  }
}

TEST_F(DiskTest, QueuesWorkInParallel) {
  constexpr uint16_t kQueues = 4;
  DiskDriver& disk = Open(MakeFile(kImageBytes), false, false, {.queues = kQueues});
  std::vector<std::thread> threads;
  for (uint16_t i = 0; i < kQueues; ++i) threads.emplace_back([&, i] { Exercise(disk, memory_, i, kQueues); });
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DiskTest, PausesDoNotDisturbRunningQueues) {
  DiskDriver& disk = Open(MakeFilledFile(), false, true, {.queues = 2});
  std::atomic<int> running = 2;
  std::vector<std::thread> threads;
  for (uint16_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      Exercise(disk, memory_, i, 2);
      --running;
    });
  }
  while (running != 0) {
    disk.model().Pause();
    const uint16_t used[] = {disk.ring(0).UsedIndex(), disk.ring(1).UsedIndex()};
    std::this_thread::yield();
    EXPECT_EQ(disk.ring(0).UsedIndex(), used[0]) << "nothing is given back while paused";
    EXPECT_EQ(disk.ring(1).UsedIndex(), used[1]);
    disk.model().Resume();
    std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DiskTest, SavedDiskGoesOnInAnotherProcessWithoutLosingOrRepeatingRequests) {
  DiskDriver& disk = Open(MakeFilledFile(), false, true);
  constexpr unsigned kRequests = 80;
  const std::string text = Pattern(kRequests * 65536, 7);
  Put(kData, text);
  std::vector<int> times(DiskDriver::kQueueSize);
  const auto take = [&](DiskDriver& from) {
    const auto done = from.Take(0);
    if (!done) return false;
    EXPECT_EQ(done->status, kOk);
    ++times[done->head];
    return true;
  };
  std::vector<uint16_t> heads;
  for (unsigned i = 0; i < kRequests; ++i) {
    heads.push_back(disk.Submit(0, kBlkWrite, 128 * i, {{kData + i * 65536ull, 65536}}));
    if (i == kRequests / 2) disk.Kick(0);
  }
  disk.model().Pause();
  const uint16_t used = disk.ring(0).UsedIndex();
  capnp::MallocMessageBuilder message;
  auto root = message.initRoot<capnp::AnyPointer>();
  disk.model().Save(root);

  DiskDriver other(memory_, OpenRawImage(OrThrow(DuplicateFd(file_.get())), {}));
  other.Open();
  ASSERT_TRUE(other.model().Restore(root.asReader()).ok());
  other.TakeOverRings(disk);
  disk_.reset();
  EXPECT_EQ(other.ring(0).UsedIndex(), used);
  other.model().Resume();
  for (unsigned i = 0; i < kRequests; ++i) other.WaitUntil([&] { return take(other); });
  EXPECT_FALSE(take(other));
  for (const uint16_t head : heads) EXPECT_EQ(times[head], 1);
  EXPECT_EQ(FileText(0, text.size()), text);
}

TEST_F(DiskTest, StateOfADiskOfAnotherSizeIsRefused) {
  DiskDriver& disk = Open(MakeFile(kImageBytes));
  disk.model().Pause();
  capnp::MallocMessageBuilder message;
  auto root = message.initRoot<capnp::AnyPointer>();
  disk.model().Save(root);
  DiskDriver other(memory_, OpenRawImage(MakeFile(kImageBytes / 2), {}));
  other.Open();
  EXPECT_FALSE(other.model().Restore(root.asReader()).ok());
}

// An empty qcow2 disk of this size; the file is as long as its tables are.
OwnFd MakeQcow2File(uint64_t disk_bytes) {
  test::MemoryFile made;
  qcow2::NewImage image;
  image.size_bytes = disk_bytes;
  OrThrow(made.Do(qcow2::CreateImage(made, image)));
  OwnFd file = MakeFile(0);
  const auto bytes = static_cast<ssize_t>(made.bytes.size());
  if (::pwrite(file.get(), made.bytes.data(), made.bytes.size(), 0) != bytes) ThrowErrno("make a test image");
  return file;
}

uint64_t SizeOf(const OwnFd& file) {
  struct stat info {};
  return ::fstat(file.get(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

// A file system extends a file for one write at a time: not for each of these.
TEST_F(DiskTest, SmallWritesToNewClustersFindRoomInTheFile) {
  constexpr uint64_t kClusterSectors = 65536 / 512;
  OwnFd file = MakeQcow2File(kImageBytes);
  const uint64_t made_bytes = SizeOf(file);
  std::vector<ImageFile> files(1);
  files[0].file = OrThrow(DuplicateFd(file.get()));
  files[0].format = ImageFormat::kQcow2;
  DiskDriver& disk = Open(std::make_unique<ImageChain>(std::move(files), ImageChainOptions()));
  const std::string text = Pattern(4096, 1);
  Put(kData, text);
  EXPECT_EQ(disk.Do(kBlkWrite, 8, {{kData, 4096}}), kOk);
  const uint64_t reserved_bytes = SizeOf(file);
  EXPECT_GT(reserved_bytes, made_bytes + (512 << 10));
  for (uint64_t i = 1; i < 4; ++i) EXPECT_EQ(disk.Do(kBlkWrite, i * kClusterSectors + 8, {{kData, 4096}}), kOk);
  EXPECT_EQ(SizeOf(file), reserved_bytes) << "there was room";
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(disk.Do(kBlkRead, i * kClusterSectors, {{kData, 16384, true}}), kOk);
    EXPECT_TRUE(Get(kData, 16384) == std::string(4096, '\0') + text + std::string(8192, '\0')) << i;
  }
}

TEST(RawImageTest, UnusableFilesAreNamed) {
  const auto refusal = [](OwnFd file, bool read_only) -> std::string {
    try {
      OpenRawImage(std::move(file), {.read_only = read_only});
    } catch (const FatalError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal(MakeFile(511), false).find("less than one sector"), std::string::npos);
  EXPECT_NE(refusal(OwnFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), true).find("neither"), std::string::npos);
  EXPECT_NE(refusal(OwnFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), false).find("neither"), std::string::npos);
  OwnFd file = MakeFile(4096);
  OwnFd read_only(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_NE(refusal(std::move(read_only), false).find("not opened for writing"), std::string::npos);
}

}  // namespace
}  // namespace bulkhead::device
