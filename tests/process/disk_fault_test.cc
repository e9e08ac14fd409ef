// SPDX-License-Identifier: Apache-2.0
// The real disk process on a file whose reads, writes and flushes fail, and whose writes end early, under load and
// with deaths in between: a request fails when the file's do and not otherwise, one that ended early is continued, and
// later ones go on as if nothing had been. And on a file system that is full, and then is not.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <fstream>

#include "tests/process/disk_load.h"
#include "tests/process/harness.h"
#include "tests/process/recording_file.h"

namespace bulkhead::test {
namespace {

using Access = RecordingFile::Access;

constexpr uint64_t kBlocks = 4096;

enum class Format : uint8_t { kRaw, kQcow2 };

// What a disk process is to work on, and what its guest may find there.
class DiskFaultTest : public testing::Test {
 protected:
  explicit DiskFaultTest(Format format) : format_(format) {}
  std::vector<std::byte> MakeImage() {
    if (format_ == Format::kRaw) return std::vector<std::byte>(kBlocks * kBlock);
    Shell("qemu-img create -f qcow2 -o cluster_size=4k image " + std::to_string(kBlocks * kBlock));
    const std::string image = ReadFile(dir_.Path("image"));
    const auto bytes = std::as_bytes(std::span(image));
    return {bytes.begin(), bytes.end()};
  }
  void Start(const std::function<OwnFd()>& open) {
    process_ = std::make_unique<DeviceProcess>(
        *io_, DeviceProcess::Options{.configure =
                                         [&](control::VmConfig::Builder vm) {
                                           auto disk = vm.initDisks(1)[0];
                                           disk.setFile(MakeFile(open()));
                                           disk.setName("image");
                                           if (format_ == Format::kQcow2) {
                                             disk.setFormat(control::ImageFormat::QCOW2);
                                           }
                                         },
                                     .plan = broker::PlanDisks});
  }
  void Kill() {
    ASSERT_EQ(::kill(process_->pid(), SIGKILL), 0);
    process_->Replace();
  }
  // The image as the process leaves it has tables that agree, and on the disk is what it may be.
  void ExpectImageGood(std::span<const std::byte> image) {
    std::string content(reinterpret_cast<const char*>(image.data()), image.size());
    if (format_ == Format::kQcow2) {
      std::ofstream(dir_.Path("image"), std::ios::binary) << content << std::flush;
      Shell("qemu-img check -f qcow2 image; s=$?; [ $s = 0 ] || [ $s = 3 ]");  // 3: leaks
      Shell("qemu-img convert -f qcow2 -O raw image raw");
      content = ReadFile(dir_.Path("raw"));
    }
    ASSERT_EQ(content.size(), kBlocks * kBlock);
    for (uint64_t i = 0; i < kBlocks; ++i) {
      ASSERT_TRUE(disk_[i].Holds(BlockValue(std::as_bytes(std::span(content)), i))) << "block " << i;
    }
  }
  void Shell(const std::string& command) const {
    ASSERT_EQ(std::system(("cd " + dir_.path() + " && { " + command + "; } >shell.log 2>&1").c_str()), 0)
        << command << "\n"
        << ReadFile(dir_.Path("shell.log"));
  }
  static unsigned Rounds() { return FromEnvironment("BULKHEAD_CHAOS_FAULTS", 100) / 5; }

  const Format format_;
  TempDir dir_;
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::mt19937_64 random_{FromEnvironment("BULKHEAD_CHAOS_SEED", 1)};
  std::vector<BlockHistory> disk_ = std::vector<BlockHistory>(kBlocks, BlockHistory(0));
  uint64_t next_value_ = 0;
  std::unique_ptr<RecordingFile> file_;
  std::unique_ptr<DeviceProcess> process_;
};

class RawDiskFault : public DiskFaultTest {
 protected:
  RawDiskFault() : DiskFaultTest(Format::kRaw) {}
};
class DiskFault : public DiskFaultTest, public testing::WithParamInterface<Format> {
 protected:
  DiskFault() : DiskFaultTest(GetParam()) {}
};

std::string NameOf(const testing::TestParamInfo<Format>& info) { return info.param == Format::kRaw ? "Raw" : "Qcow2"; }
INSTANTIATE_TEST_SUITE_P(Formats, DiskFault, testing::Values(Format::kRaw, Format::kQcow2), NameOf);

// Blocks of a raw image that cannot be read or written, or for which the file system has no room.
class BadBlocks {
 public:
  void Choose(std::mt19937_64& random) {
    for (Range& range : ranges_) {
      range = {random() % kBlocks, 1 + random() % 64, random() % 2 == 0 ? EIO : ENOSPC};
    }
  }
  // What an access to these fails with.
  int FaultOf(bool changes, uint64_t first, uint64_t blocks) const {
    for (const Range& range : ranges_) {
      const bool meets = first < range.first + range.blocks && range.first < first + blocks;
      if (meets && (changes || range.error == EIO)) return range.error;
    }
    return 0;
  }

 private:
  struct Range {
    uint64_t first = 0, blocks = 0;
    int error = 0;
  };
  std::array<Range, 4> ranges_;
};

TEST_F(RawDiskFault, ARequestFailsWhenItsBlocksDoAndOnlyThen) {
  if (!RecordingFile::IsPossible()) GTEST_SKIP() << "making a file fail takes root and FUSE";
  BadBlocks bad;
  file_ = std::make_unique<RecordingFile>(MakeImage(), 1);
  Start([&] { return file_->Open(O_RDWR); });
  DiskLoad load(*process_, disk_, next_value_, random_, [&](Work work, uint64_t first, uint64_t blocks) {
    if (work == Work::kFlush) return Fate::kSucceeds;
    return bad.FaultOf(work != Work::kRead, first, blocks) != 0 ? Fate::kFails : Fate::kSucceeds;
  });
  for (unsigned round = 0; round < Rounds() && !HasFailure(); ++round) {
    bad.Choose(random_);
    file_->SetFaults(
        [bad](Access access, uint64_t offset, uint64_t size_bytes) {
          return access == Access::kFlush
                     ? 0
                     : bad.FaultOf(access == Access::kChange, offset / kBlock, size_bytes / kBlock);
        },
        true);
    load.Run(100);
    if (round % 4 == 3) Kill();
    load.Run(20);
    load.Settle();
  }
  EXPECT_GT(load.failed(), 0u);
  ExpectImageGood(file_->bytes());
}

TEST_P(DiskFault, WritesThatEndEarlyAreContinued) {
  if (!RecordingFile::IsPossible()) GTEST_SKIP() << "making writes end early takes root and FUSE";
  file_ = std::make_unique<RecordingFile>(MakeImage(), 1);
  file_->SetFaults(nullptr, true);
  Start([&] { return file_->Open(O_RDWR); });
  DiskLoad load(*process_, disk_, next_value_, random_, [](Work, uint64_t, uint64_t) { return Fate::kSucceeds; });
  for (unsigned round = 0; round < Rounds() && !HasFailure(); ++round) {
    load.Run(100);
    if (round % 4 == 3) Kill();
    load.Settle();
  }
  ExpectImageGood(file_->bytes());
}

// Any access fails by chance for a while, those to tables too, and then none does.
TEST_P(DiskFault, WhatFailedForAWhileWorksAgain) {
  if (!RecordingFile::IsPossible()) GTEST_SKIP() << "making a file fail takes root and FUSE";
  file_ = std::make_unique<RecordingFile>(MakeImage(), 1);
  Start([&] { return file_->Open(O_RDWR); });
  bool failing = false;
  DiskLoad load(*process_, disk_, next_value_, random_,
                [&](Work, uint64_t, uint64_t) { return failing ? Fate::kEither : Fate::kSucceeds; });
  for (unsigned round = 0; round < Rounds() && !HasFailure(); ++round) {
    failing = true;
    file_->SetFaults(
        [chance = std::mt19937_64(random_())](Access, uint64_t, uint64_t) mutable {
          return chance() % 8 != 0 ? 0 : chance() % 2 == 0 ? EIO : ENOSPC;
        },
        true);
    load.Run(100);
    if (round % 4 == 3) {
      // Whoever takes over has to be able to read the file.
      file_->SetFaults(nullptr, true);
      Kill();
    }
    load.Settle();
    file_->SetFaults(nullptr, true);
    load.Settle();
    failing = false;
    load.Run(40);
    load.Settle();
  }
  EXPECT_GT(load.failed(), 0u);
  ExpectImageGood(file_->bytes());
}

// A file system in memory of bounded size that is mounted nowhere, so nothing of it is left behind.
class SmallFileSystem {
 public:
  static bool IsPossible() { return ::geteuid() == 0 && OwnFd(::fsopen("tmpfs", FSOPEN_CLOEXEC)).valid(); }
  explicit SmallFileSystem(uint64_t bytes) {
    const OwnFd context(::fsopen("tmpfs", FSOPEN_CLOEXEC));
    const std::string size = std::to_string(bytes);
    if (!context.valid() || ::fsconfig(context.get(), FSCONFIG_SET_STRING, "size", size.c_str(), 0) != 0 ||
        ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
      ThrowErrno("make a file system in memory");
    }
    mount_ = OwnFd(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (!mount_.valid()) ThrowErrno("mount a file system in memory");
  }
  OwnFd Open(const char* name) const {
    OwnFd file(::openat(mount_.get(), name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file.valid()) ThrowErrno("open a file in memory");
    return file;
  }

 private:
  OwnFd mount_;
};

// Whoever looks after the host makes room, and the guest goes on writing.
TEST_P(DiskFault, AFullFileSystemCostsWhatNeedsRoomUntilThereIsSome) {
  // Less than the disk has.
  constexpr uint64_t kRoom = 1 << 20, kBallast = 4 << 20;
  if (!SmallFileSystem::IsPossible()) GTEST_SKIP() << "a file system of its own takes root";
  const SmallFileSystem memory(kRoom + kBallast);
  const OwnFd ballast = memory.Open("ballast"), image = memory.Open("image");
  ASSERT_EQ(::posix_fallocate(ballast.get(), 0, kBallast), 0);
  const std::vector<std::byte> bytes = MakeImage();
  if (format_ == Format::kRaw) {
    ASSERT_EQ(::ftruncate(image.get(), static_cast<off_t>(bytes.size())), 0);
  } else {
    ASSERT_EQ(::pwrite(image.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  Start([&] { return memory.Open("image"); });
  bool full = true;
  DiskLoad load(*process_, disk_, next_value_, random_, [&](Work work, uint64_t, uint64_t) {
    return full && work != Work::kRead ? Fate::kEither : Fate::kSucceeds;
  });
  for (unsigned i = 0; i < 100 && load.failed() == 0 && !HasFailure(); ++i) load.Run(100);
  EXPECT_GT(load.failed(), 0u);
  Kill();
  load.Run(100);
  load.Settle();
  ASSERT_EQ(::ftruncate(ballast.get(), 0), 0);
  load.Settle();
  full = false;
  load.Run(1000);
  load.Settle();
  std::vector<std::byte> content(static_cast<size_t>(::lseek(image.get(), 0, SEEK_END)));
  ASSERT_EQ(::pread(image.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  ExpectImageGood(content);
}

}  // namespace
}  // namespace bulkhead::test
