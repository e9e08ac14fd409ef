// SPDX-License-Identifier: Apache-2.0
// Against a folder that looks like a cgroup tree; what the kernel does is tests/guest/suite's.
#include "broker/cgroup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace bulkhead::broker {
namespace {

namespace fs = std::filesystem;

class CgroupTreeTest : public testing::Test {
 protected:
  CgroupTreeTest() {
    std::string pattern = testing::TempDir() + "cgroup.XXXXXX";
    root_ = ::mkdtemp(pattern.data());
  }
  ~CgroupTreeTest() override { fs::remove_all(root_); }

  // A cgroup with these controllers, all of them enabled for those below it.
  void AddCgroup(const fs::path& path, const std::string& controllers) {
    fs::create_directories(root_ / path);
    Write(path / "cgroup.controllers", controllers);
    Write(path / "cgroup.subtree_control", controllers);
    Write(path / "cgroup.procs", "");
  }
  void Write(const fs::path& path, const std::string& text) { std::ofstream(root_ / path) << text << "\n"; }
  std::string Read(const fs::path& path) {
    std::ifstream file(root_ / path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  CgroupTree Tree(const std::string& own_path, bool is_root = false) { return {root_, own_path, is_root}; }
  CgroupPlace Place() {
    fs::create_directories(root_ / "bulkhead");
    return {.directory = OwnFd(::open((root_ / "bulkhead").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
            .controllers = {"memory", "pids"}};
  }

  fs::path root_;
};

using CgroupPlaceTest = CgroupTreeTest;

TEST_F(CgroupPlaceTest, OfRootIsBeneathTheMount) {
  AddCgroup("", "cpu io memory pids");
  AddCgroup("bulkhead", "cpu io memory pids");
  const auto place = FindCgroupPlace(Tree("/system.slice/ssh.service", true));
  ASSERT_TRUE(place.ok()) << place.error().message;
  EXPECT_EQ(place->controllers, (std::set<std::string>{"cpu", "io", "memory", "pids"}));
}

TEST_F(CgroupPlaceTest, OfAUserIsBeneathTheNearestDelegatedCgroupAboveTheOwn) {
  AddCgroup("", "memory pids");
  AddCgroup("user.slice/app.slice", "memory pids");
  AddCgroup("user.slice/app.slice/bulkhead", "memory pids");
  AddCgroup("user.slice/app.slice/shell.scope", "memory pids");
  const auto place = FindCgroupPlace(Tree("/user.slice/app.slice/shell.scope"));
  ASSERT_TRUE(place.ok()) << place.error().message;
  struct stat found {
  }, expected{};
  ::fstat(place->directory.get(), &found);
  ::stat((root_ / "user.slice/app.slice/bulkhead").c_str(), &expected);
  EXPECT_EQ(found.st_ino, expected.st_ino);
}

// The kernel refuses that write; a folder shows it.
TEST_F(CgroupPlaceTest, EnablesWhatIsThereAndNotYetEnabled) {
  AddCgroup("", "cpu memory pids hugetlb");
  Write("cgroup.subtree_control", "memory cpu");
  AddCgroup("bulkhead", "memory pids");
  const auto place = FindCgroupPlace(Tree("/", true));
  ASSERT_TRUE(place.ok()) << place.error().message;
  EXPECT_TRUE(Read("cgroup.subtree_control").starts_with("+pids"));
  EXPECT_EQ(place->controllers, (std::set<std::string>{"memory", "pids"}));
}

TEST_F(CgroupPlaceTest, IsMissingInOneLineWhereThereIsNone) {
  AddCgroup("", "");
  AddCgroup("a/b", "");
  const CgroupTree not_mounted{"", "/", true};
  for (const CgroupTree& tree : {not_mounted, Tree("/", true), Tree("/a/b"), Tree("/../elsewhere"), Tree("")}) {
    const auto place = FindCgroupPlace(tree);
    ASSERT_FALSE(place.ok());
    EXPECT_TRUE(place.error().message.starts_with("no cgroup limits: "));
    EXPECT_EQ(place.error().message.find('\n'), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(root_ / "bulkhead"));
  EXPECT_NE(FindCgroupPlace(Tree("/", true)).error().message.find("memory, pids and cpu"), std::string::npos);
}

using VmCgroupTest = CgroupTreeTest;

TEST_F(VmCgroupTest, WithoutAPlaceSaysWhyAndHasNoLeaves) {
  const VmCgroup cgroup({.vm = "web1", .limits = {}, .leaves = {{"disk0", {}}}}, Error{ENOTSUP, "no cgroup limits: x"});
  EXPECT_EQ(cgroup.missing(), "no cgroup limits: x");
  EXPECT_FALSE(cgroup.OpenLeaf("disk0").valid());
  EXPECT_EQ(cgroup.parent(), -1);
}

TEST_F(VmCgroupTest, WithoutAPlaceALimitThatWasAskedForIsAnError) {
  const CgroupPlan plan{.vm = "web1", .limits = {}, .leaves = {}, .asked_for = true};
  EXPECT_THROW(VmCgroup(plan, Error{ENOTSUP, "no cgroup limits: x"}), FatalError);
  const CgroupPlan io{.vm = "web1", .limits = {{"io.max", "8:0 rbps=1", true}}, .leaves = {}, .asked_for = true};
  EXPECT_THROW(VmCgroup(io, Place()), FatalError);
}

// Here it fails at the first limit, as no file appears with a folder.
TEST_F(VmCgroupTest, ThatFailsHalfWayLeavesNothing) {
  const VmCgroup cgroup({.vm = "web1", .limits = {{"memory.max", "1", true}}, .leaves = {{"disk0", {}}}}, Place());
  EXPECT_NE(cgroup.missing().find("set memory.max"), std::string::npos) << cgroup.missing();
  EXPECT_TRUE(fs::is_empty(root_ / "bulkhead"));
}

TEST_F(VmCgroupTest, SweepsWhatAKilledBrokerLeftAndNotWhatALiveOneHolds) {
  fs::create_directories(root_ / "bulkhead/dead-1/disk0");
  fs::create_directories(root_ / "bulkhead/live-2/disk0");
  const OwnFd live(::open((root_ / "bulkhead/live-2").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_EQ(::flock(live.get(), LOCK_EX | LOCK_NB), 0);
  const VmCgroup cgroup({.vm = "web1", .limits = {}, .leaves = {}}, Place());
  EXPECT_FALSE(fs::exists(root_ / "bulkhead/dead-1"));
  EXPECT_TRUE(fs::exists(root_ / "bulkhead/live-2/disk0"));
}

}  // namespace
}  // namespace bulkhead::broker
