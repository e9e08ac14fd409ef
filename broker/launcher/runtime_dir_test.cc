// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/runtime_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

// Runs with $BULKHEAD_RUNTIME_DIR at a directory that does not exist yet.
class RuntimeDirTest : public testing::Test {
 protected:
  RuntimeDirTest() {
    std::string pattern = fs::temp_directory_path() / "bulkhead-test.XXXXXX";
    base_ = ::mkdtemp(pattern.data());
    path_ = base_ / "run";
    ::setenv("BULKHEAD_RUNTIME_DIR", path_.c_str(), 1);
  }
  ~RuntimeDirTest() override {
    ::unsetenv("BULKHEAD_RUNTIME_DIR");
    fs::remove_all(base_);
  }
  void Touch(const std::string& name) const { std::ofstream(path_ / name).flush(); }

  fs::path base_;
  fs::path path_;
};

TEST_F(RuntimeDirTest, IsMadeForItsOwnerAlone) {
  const RuntimeDir directory;
  EXPECT_EQ(directory.path(), path_);
  struct stat info {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
}

TEST_F(RuntimeDirTest, OneThatOthersMayWriteIsRefused) {
  fs::create_directory(path_);
  fs::permissions(path_, fs::perms::all);
  EXPECT_THROW(RuntimeDir(), FatalError);
}

TEST_F(RuntimeDirTest, ASymbolicLinkIsRefused) {
  fs::create_directory(base_ / "elsewhere");
  fs::permissions(base_ / "elsewhere", fs::perms::owner_all);
  fs::create_directory_symlink(base_ / "elsewhere", path_);
  EXPECT_THROW(RuntimeDir(), FatalError);
}

// Another user's, as root sees it.
TEST_F(RuntimeDirTest, RootLooksIntoAnotherUsersAndLeavesItAsItIs) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may look into another user's directory";
  constexpr uid_t kOther = 65534;
  fs::create_directory(path_);
  fs::permissions(path_, fs::perms::owner_all);
  ASSERT_EQ(::chown(path_.c_str(), kOther, kOther), 0);
  EXPECT_THROW(RuntimeDir(), FatalError);
  const RuntimeDir directory(RuntimeDir::Whose::kAnyonesForRoot);
  EXPECT_EQ(directory.owner(), kOther);
  Touch("stale.lock");
  Touch("alone.sock");
  EXPECT_EQ(directory.LiveNames(), std::vector<std::string>{});
  EXPECT_TRUE(fs::exists(path_ / "stale.lock"));
  EXPECT_TRUE(fs::exists(path_ / "alone.sock"));
  EXPECT_FALSE(fs::exists(path_ / "alone.lock"));
}

TEST_F(RuntimeDirTest, AFileInItsPlaceIsRefused) {
  std::ofstream(path_).flush();
  EXPECT_THROW(RuntimeDir(), FatalError);
}

TEST_F(RuntimeDirTest, ANameIsTakenOnceAndFreedWithItsLock) {
  const RuntimeDir directory;
  {
    const auto lock = directory.LockName("web1");
    try {
      directory.LockName("web1");
      ADD_FAILURE() << "taken twice";
    } catch (const FatalError& error) {
      EXPECT_NE(std::string(error.what()).find("web1"), std::string::npos);
    }
    directory.LockName("web2");
  }
  directory.LockName("web1");
  EXPECT_TRUE(fs::is_empty(path_));
}

TEST_F(RuntimeDirTest, LiveNamesAreSortedAndNobodysFilesAreSwept) {
  const RuntimeDir directory;
  const auto second = directory.LockName("b.2");
  const auto first = directory.LockName("a.1");
  Touch("a.1.sock");
  Touch("stale.lock");
  Touch("stale.sock");
  Touch("alone.sock");
  EXPECT_EQ(directory.LiveNames(), (std::vector<std::string>{"a.1", "b.2"}));
  EXPECT_TRUE(fs::exists(path_ / "a.1.lock"));
  EXPECT_TRUE(fs::exists(path_ / "a.1.sock"));
  EXPECT_FALSE(fs::exists(path_ / "stale.lock"));
  EXPECT_FALSE(fs::exists(path_ / "stale.sock"));
  EXPECT_FALSE(fs::exists(path_ / "alone.sock"));
  EXPECT_FALSE(fs::exists(path_ / "alone.lock"));
}

TEST_F(RuntimeDirTest, AStaleLockIsTakenOver) {
  const RuntimeDir directory;
  Touch("web1.lock");
  const auto lock = directory.LockName("web1");
  EXPECT_EQ(directory.LiveNames(), std::vector<std::string>{"web1"});
}

}  // namespace
}  // namespace bulkhead::launcher
