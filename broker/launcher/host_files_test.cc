// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/host_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

class HostFiles : public testing::Test {
 protected:
  HostFiles() {
    std::string pattern = fs::temp_directory_path() / "bulkhead-test.XXXXXX";
    base_ = ::mkdtemp(pattern.data());
  }
  ~HostFiles() override { fs::remove_all(base_); }

  std::string Image(const std::string& name, uint64_t size_bytes) const {
    std::ofstream(base_ / name).flush();
    fs::resize_file(base_ / name, size_bytes);
    return base_ / name;
  }
  static DiskOption Disk(const std::string& path, bool read_only = false) {
    DiskOption disk;
    disk.path = path;
    disk.read_only = read_only;
    return disk;
  }
  static DiskOption Disk(const std::string& path, const std::vector<std::string>& backing, bool read_only = false) {
    DiskOption disk = Disk(path, read_only);
    for (const std::string& file : backing) disk.backing.push_back({.path = file, .format = DiskFormat::kRaw});
    return disk;
  }
  static DiskOption Qcow2(const std::string& path) {
    DiskOption disk = Disk(path);
    disk.format = DiskFormat::kQcow2;
    return disk;
  }
  // Fails with one line in which `word` occurs.
  static void ExpectLine(const std::function<void()>& action, const std::string& word) {
    try {
      action();
      ADD_FAILURE() << "no error with " << word;
    } catch (const FatalError& error) {
      const std::string line = error.what();
      EXPECT_NE(line.find(word), std::string::npos) << line;
      EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    }
  }

  fs::path base_;
};

TEST_F(HostFiles, SourcesMustBeRegularFilesWithBytes) {
  ExpectLine([&] { OpenSource("kernel", base_ / "missing"); }, "missing");
  ExpectLine([&] { OpenSource("kernel", base_); }, "directory");
  ExpectLine([&] { OpenSource("kernel", Image("empty", 0)); }, "empty");
  ExpectLine([&] { OpenSource("kernel", "/dev/null"); }, "regular");
  EXPECT_TRUE(OpenSource("kernel", Image("full", 1)).valid());
}

TEST_F(HostFiles, AnOpenedFileIsNotInherited) {
  const OwnFd file = OpenSource("kernel", Image("kernel", 1));
  EXPECT_EQ(::fcntl(file.get(), F_GETFD), FD_CLOEXEC);
}

TEST_F(HostFiles, ImagesThatCannotBeDisksAreRefused) {
  ExpectLine([&] { OpenDisks({Disk(base_ / "missing")}); }, "no such file");
  ExpectLine([&] { OpenDisks({Disk(Image("file", 512) + "/below")}); }, "not a directory");
  ExpectLine([&] { OpenDisks({Disk(base_)}); }, "directory");
  ExpectLine([&] { OpenDisks({Disk(Image("empty", 0))}); }, "img create -f raw");
  ExpectLine([&] { OpenDisks({Disk(Image("ragged", 1000))}); }, "512");
  ExpectLine([&] { OpenDisks({Disk("/dev/null")}); }, "block device");
}

TEST_F(HostFiles, AnImageWithAFormatMayHaveAnySizeButNone) {
  EXPECT_EQ(OpenDisks({Qcow2(Image("ragged.qcow2", 1000))}).size(), 1u);
  ExpectLine([&] { OpenDisks({Qcow2(Image("empty.qcow2", 0))}); }, "img create -f qcow2");
  // Nor has a raw file below another one, whose bytes past the end are zero.
  EXPECT_EQ(OpenDisks({Disk(Image("top", 512), {Image("ragged", 1000), Image("empty", 0)})})[0].backing.size(), 2u);
}

TEST_F(HostFiles, BackingFilesAreOpenedForReadingInTheirOrder) {
  const auto disks = OpenDisks({Disk(Image("top", 512), {Image("one", 512), Image("two", 1024)})});
  ASSERT_EQ(disks[0].backing.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const int fd = disks[0].backing[i].file.get();
    struct stat info {};
    ASSERT_EQ(::fstat(fd, &info), 0);
    EXPECT_EQ(static_cast<size_t>(info.st_size), (i + 1) * 512);
    EXPECT_EQ(::fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  }
  ExpectLine([&] { OpenDisks({Disk(Image("other", 512), {base_ / "missing"})}); }, "backing file '");
}

TEST_F(HostFiles, ABackingFileIsSharedAndNotWritten) {
  const std::string base = Image("base", 512), a = Image("a", 512), b = Image("b", 512);
  const auto disks = OpenDisks({Disk(a, {base}), Disk(b, {base})});
  EXPECT_EQ(disks.size(), 2u) << "two disks of one VM";
  EXPECT_EQ(OpenDisks({Disk(Image("c", 512), {base})}).size(), 1u) << "and of another";
  EXPECT_EQ(OpenDisks({Disk(base, true)}).size(), 1u);
  ExpectLine([&] { OpenDisks({Disk(base)}); }, "in use");
}

TEST_F(HostFiles, AFileThatAVmWritesIsNoBackingFile) {
  const std::string base = Image("base", 512), top = Image("top", 512);
  fs::create_hard_link(base, base_ / "link");
  ExpectLine([&] { OpenDisks({Disk(base), Disk(top, {base_ / "link"})}); }, "may write");
  ExpectLine([&] { OpenDisks({Disk(top, {base}), Disk(base)}); }, "may write");
  ExpectLine([&] { OpenDisks({Disk(top, {top})}); }, "may write");
  EXPECT_EQ(OpenDisks({Disk(base, true), Disk(top, {base})}).size(), 2u);
  const auto writer = OpenDisks({Disk(base)});
  ExpectLine([&] { OpenDisks({Disk(top, {base})}); }, "in use");
}

TEST_F(HostFiles, ASocketAsImageIsNamedAsSuch) {
  const OwnFd socket = ListenAt(base_ / "socket");
  ExpectLine([&] { OpenDisks({Disk(base_ / "socket")}); }, "socket");
}

TEST_F(HostFiles, OneImageUnderTwoNamesIsRefused) {
  const std::string image = Image("disk", 4096);
  fs::create_symlink(image, base_ / "symlink");
  fs::create_hard_link(image, base_ / "hardlink");
  for (const char* name : {"disk", "symlink", "hardlink"}) {
    ExpectLine([&] { OpenDisks({Disk(image), Disk(base_ / name)}); }, "twice");
  }
}

TEST_F(HostFiles, WritersExcludeEverybodyAndReadersOnlyWriters) {
  const std::string image = Image("disk", 4096);
  {
    const auto writer = OpenDisks({Disk(image)});
    ExpectLine([&] { OpenDisks({Disk(image)}); }, "in use");
    ExpectLine([&] { OpenDisks({Disk(image, true)}); }, "in use");
  }
  const auto reader = OpenDisks({Disk(image, true)});
  EXPECT_EQ(OpenDisks({Disk(image, true)}).size(), 1u);
  ExpectLine([&] { OpenDisks({Disk(image)}); }, "in use");
}

TEST_F(HostFiles, LocksEndWithDiskLocksEvenWhereTheFileStaysOpen) {
  const std::string image = Image("disk", 4096);
  const auto disks = OpenDisks({Disk(image)});
  {
    DiskLocks locks;
    locks.Add(disks[0].image.file);
    ExpectLine([&] { OpenDisks({Disk(image)}); }, "in use");
  }
  EXPECT_EQ(OpenDisks({Disk(image)}).size(), 1u);
}

TEST_F(HostFiles, DirectIoIsReportedAsOpened) {
  const std::string image = Image("disk", 4096);
  for (const bool direct : {false, true}) {
    DiskOption option = Disk(image);
    option.direct = direct;
    const auto disks = OpenDisks({option});
    const bool opened_direct = (::fcntl(disks[0].image.file.get(), F_GETFL) & O_DIRECT) != 0;
    EXPECT_EQ(disks[0].image.direct_io, opened_direct);
    EXPECT_TRUE(direct || !opened_direct);
  }
}

TEST_F(HostFiles, OutputIsAppendedAndForTheOwnerAlone) {
  const std::string path = base_ / "log";
  for (const char* text : {"one", "two"}) {
    const OwnFd file = OpenOutput(path);
    ASSERT_EQ(::write(file.get(), text, 3), 3);
  }
  EXPECT_EQ(fs::file_size(path), 6u);
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  ExpectLine([&] { OpenOutput(base_ / "nowhere" / "log"); }, "no such directory");
  ExpectLine([&] { OpenOutput(base_); }, "directory");
}

TEST_F(HostFiles, ASocketNobodyListensAtIsReplacedAndNothingElseIs) {
  const std::string path = base_ / "console";
  { const OwnFd gone = ListenAt(path); }
  const OwnFd socket = ListenAt(path);
  EXPECT_EQ(fs::status(path).permissions() & fs::perms::mask & ~fs::perms::owner_all, fs::perms::none);
  ExpectLine([&] { ListenAt(path); }, "in use");
  const std::string file = Image("precious", 1);
  ExpectLine([&] { ListenAt(file); }, "something else");
  EXPECT_TRUE(fs::exists(file));
  ExpectLine([&] { ListenAt(base_ / std::string(120, 'x')); }, "107");
}

TEST_F(HostFiles, APseudoTerminalPassesBytesUnchanged) {
  const Pty pty = OpenPty();
  const OwnFd user(::open(pty.path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(user.valid());
  ASSERT_EQ(::write(pty.master.get(), "a\nb", 3), 3);
  char bytes[8] = {};
  EXPECT_EQ(::read(user.get(), bytes, sizeof bytes), 3);
  EXPECT_STREQ(bytes, "a\nb");
}

TEST_F(HostFiles, MoreMemoryThanTheHostHasIsRefused) {
  EXPECT_NO_THROW(CheckHostMemory(uint64_t{16} << 20));
  ExpectLine([] { CheckHostMemory(uint64_t{1} << 52); }, "memory");
}

}  // namespace
}  // namespace bulkhead::launcher
