// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/cloud_init.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

class CloudInitTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = std::filesystem::temp_directory_path() / "cloud-init.XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Put(const std::string& name, const std::string& contents) {
    std::ofstream(directory_ / name) << contents;
    return directory_ / name;
  }
  // The whole disk as a guest sees it.
  static std::string Bytes(const OpenDisk& disk) {
    struct stat info {};
    EXPECT_EQ(::fstat(disk.image.file.get(), &info), 0);
    std::string bytes(static_cast<size_t>(info.st_size), '\0');
    EXPECT_EQ(::pread(disk.image.file.get(), bytes.data(), bytes.size(), 0), info.st_size);
    return bytes;
  }
  static bool Holds(const OpenDisk& disk, const std::string& text) {
    return Bytes(disk).find(text) != std::string::npos;
  }
  static std::string InstanceOf(const OpenDisk& disk) {
    const std::string bytes = Bytes(disk);
    const size_t at = bytes.find("instance-id: ");
    return at == std::string::npos ? "" : bytes.substr(at, bytes.find('\n', at) - at);
  }

  std::filesystem::path directory_;
};

TEST_F(CloudInitTest, TakesTheFilesOfAFolder) {
  Put("user-data", "#cloud-config\nkeys");
  Put("network-config", "version: 2");
  Put("other", "not for the guest");
  const OpenDisk disk = MakeCloudInitDisk({.directory = directory_, .files = {}, .hostname = "web1"});
  EXPECT_TRUE(Holds(disk, "#cloud-config\nkeys"));
  EXPECT_TRUE(Holds(disk, "version: 2"));
  EXPECT_TRUE(Holds(disk, "local-hostname: web1\n"));
  EXPECT_FALSE(Holds(disk, "not for the guest"));
}

TEST_F(CloudInitTest, TheUsersMetaDataIsTakenAsItIs) {
  Put("user-data", "#cloud-config");
  Put("meta-data", "instance-id: mine\n");
  const OpenDisk disk = MakeCloudInitDisk({.directory = directory_, .files = {}, .hostname = "web1"});
  EXPECT_EQ(InstanceOf(disk), "instance-id: mine");
  EXPECT_FALSE(Holds(disk, "local-hostname"));
}

TEST_F(CloudInitTest, AFileOfItsOwnStandsBeforeTheFoldersOne) {
  Put("user-data", "of the folder");
  const std::string path = Put("another", "of its own");
  const OpenDisk disk = MakeCloudInitDisk({.directory = directory_, .files = {{"user-data", path}}, .hostname = ""});
  EXPECT_TRUE(Holds(disk, "of its own"));
  EXPECT_FALSE(Holds(disk, "of the folder"));
}

TEST_F(CloudInitTest, TheInstanceIsAnotherOneWheneverTheRestIs) {
  const CloudInitOption option{.directory = "", .files = {{"user-data", Put("user-data", "one")}}, .hostname = "a"};
  const std::string first = InstanceOf(MakeCloudInitDisk(option));
  EXPECT_EQ(InstanceOf(MakeCloudInitDisk(option)), first);
  CloudInitOption renamed = option;
  renamed.hostname = "b";
  EXPECT_NE(InstanceOf(MakeCloudInitDisk(renamed)), first);
  Put("user-data", "two");
  EXPECT_NE(InstanceOf(MakeCloudInitDisk(option)), first);
}

TEST_F(CloudInitTest, NothingCanBeWrittenThroughItsDescriptor) {
  Put("user-data", "x");
  const OpenDisk disk = MakeCloudInitDisk({.directory = directory_, .files = {}, .hostname = ""});
  EXPECT_EQ(::fcntl(disk.image.file.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(::fcntl(disk.image.file.get(), F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
}

TEST_F(CloudInitTest, WhatIsMissingOrTooLargeIsNamed) {
  const auto error = [&](const CloudInitOption& option) -> std::string {
    try {
      MakeCloudInitDisk(option);
    } catch (const FatalError& failure) {
      return failure.what();
    }
    return "none";
  };
  EXPECT_NE(error({.directory = directory_, .files = {}, .hostname = ""}).find("user-data': there is no such file"),
            std::string::npos);
  const std::string path = Put("user-data", "");
  std::filesystem::resize_file(path, (16 << 20) + 1);
  EXPECT_NE(error({.directory = directory_, .files = {}, .hostname = ""}).find("is larger than 16 MiB"),
            std::string::npos);
}

}  // namespace
}  // namespace bulkhead::launcher
