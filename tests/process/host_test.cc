// SPDX-License-Identifier: Apache-2.0
// Hosts that cannot run VMs, or not quite: each says in one line what is missing and how to get it.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "tests/process/surroundings.h"

namespace bulkhead::test {
namespace {

constexpr unsigned kMiscMajor = 10;
constexpr unsigned kKvmMinor = 232;
constexpr unsigned kNobodysMinor = 254;  // no driver has it: open says ENODEV, as for KVM without its hardware

bool IsRoot() { return ::geteuid() == 0; }

// A directory that an ordinary user may pass through, with empty ones in it to mount on.
class OpenDir {
 public:
  OpenDir() {
    ::chmod(dir_.path().c_str(), 0755);
    for (const char* name : {"a", "b"}) ::mkdir(dir_.Path(name).c_str(), 0755);
  }
  std::string a() const { return dir_.Path("a"); }
  std::string b() const { return dir_.Path("b"); }
  const TempDir& dir() const { return dir_; }

 private:
  TempDir dir_;
};

void ExpectRefused(const std::vector<const char*>& words, const Prepare& prepare) {
  const OpenDir place;
  const std::string name = UniqueName();
  // Where it is readable for everybody, like a kernel in /boot.
  const std::string kernel = place.dir().MakeFile("kernel", ReadFile(Payload("hello")));
  const Finished run = RunBulkhead({"run", "--name", name, "--console", "none", "--kernel", kernel}, "", prepare);
  ASSERT_NE(run.status, kNotPrepared) << "this host cannot be made to look like the one of the test";
  EXPECT_EQ(run.status, 1) << run.errors;
  EXPECT_EQ(std::count(run.errors.begin(), run.errors.end(), '\n'), 1) << run.errors;
  for (const char* word : words) EXPECT_NE(run.errors.find(word), std::string::npos) << word << " in " << run.errors;
  EXPECT_EQ(run.errors.find("666"), std::string::npos) << run.errors;
  EXPECT_TRUE(ProcessesOf(name).empty());
}

TEST(Host, WithoutKvmNamesTheModules) {
  const auto prepare = [](Launch&) { return EnterMountNamespace() && HideKvm(); };
  ExpectRefused({"/dev/kvm", "modprobe", "firmware"}, prepare);
  const Finished check = RunBulkhead({"check"}, "", prepare);
  EXPECT_EQ(check.status, 1);
  EXPECT_NE((check.output + check.errors).find("modprobe"), std::string::npos) << check.output << check.errors;
}

TEST(Host, WithoutPermissionOnKvmNamesTheGroup) {
  const OpenDir place;
  const std::string locked = place.dir().MakeFile("kvm", "");
  ::chmod(locked.c_str(), 0);
  ExpectRefused({"/dev/kvm", "permission", "usermod -aG kvm"}, [&](Launch& launch) {
    return EnterMountNamespace() && ReplaceKvm(locked) && BecomeOrdinaryUser(place.a(), launch);
  });
}

TEST(Host, WithKvmButWithoutItsHardwareNamesModuleAndFirmwareSwitch) {
  if (!IsRoot()) GTEST_SKIP() << "only root can make the device file that this needs";
  const OpenDir place;
  ExpectRefused({"/dev/kvm", "kvm_intel", "firmware"}, [&](Launch&) {
    return EnterMountNamespace() && ReplaceKvmByDevice(place.a(), kMiscMajor, kNobodysMinor);
  });
}

TEST(Host, WithKvmOfAnotherKindSaysSo) {
  ExpectRefused({"KVM", "version"}, [](Launch&) { return EnterMountNamespace() && ReplaceKvm("/dev/zero"); });
}

TEST(Host, WithoutUserNamespacesNamesTheSysctl) {
  ExpectRefused({"user namespace", "sysctl user.max_user_namespaces"}, [](Launch&) { return ForbidUserNamespaces(); });
}

TEST(Host, InAChangedRootSaysWhatForbidsNamespaces) {
  const OpenDir place;
  ExpectRefused({"user namespaces", "chroot"}, [&](Launch&) { return EnterMountNamespace() && ChangeRoot(place.a()); });
}

TEST(Host, OrdinaryUserWhoMayOpenKvmRunsAVm) {
  const OpenDir place;
  const std::string kernel = place.dir().MakeFile("kernel", ReadFile(Payload("hello")));
  const Finished run =
      RunBulkhead({"run", "--name", UniqueName(), "--console", "none", "--debug-console", "stdio", "--kernel", kernel},
                  "", [&](Launch& launch) {
                    if (!IsRoot()) return true;
                    return EnterMountNamespace() && ReplaceKvmByDevice(place.a(), kMiscMajor, kKvmMinor) &&
                           BecomeOrdinaryUser(place.b(), launch);
                  });
  EXPECT_EQ(run.status, 0) << run.errors;
  EXPECT_NE(run.output.find("DONE"), std::string::npos) << run.output;
}

TEST(Host, UnreadableKernelIsAnErrorForAnOrdinaryUser) {
  const OpenDir place;
  const std::string kernel = place.dir().MakeFile("kernel", "x");
  ::chmod(kernel.c_str(), 0);
  const Finished run = RunBulkhead(
      {"run", "--name", UniqueName(), "--console", "none", "--kernel", kernel}, "",
      [&](Launch& launch) { return !IsRoot() || (EnterMountNamespace() && BecomeOrdinaryUser(place.a(), launch)); });
  EXPECT_EQ(run.status, 1);
  EXPECT_NE(run.errors.find(kernel), std::string::npos) << run.errors;
  EXPECT_NE(run.errors.find("permission denied"), std::string::npos) << run.errors;
}

TEST(Host, MissingWallIsToldAndRefusedWhereAllAreRequired) {
  const OpenDir place;
  const std::string kernel = place.dir().MakeFile("kernel", ReadFile(Payload("hello")));
  // An ordinary user has one id for all processes, on any host.
  const auto prepare = [&](Launch& launch) {
    if (!IsRoot()) return true;
    return EnterMountNamespace() && ReplaceKvmByDevice(place.a(), kMiscMajor, kKvmMinor) &&
           BecomeOrdinaryUser(place.b(), launch);
  };
  std::vector<std::string> arguments{"run", "--name", UniqueName(), "--console", "none", "--kernel", kernel};
  const Finished told = RunBulkhead(arguments, "", prepare);
  EXPECT_EQ(told.status, 0) << told.errors;
  EXPECT_EQ(std::count(told.errors.begin(), told.errors.end(), '\n'), 1) << told.errors;
  EXPECT_NE(told.errors.find("no user id for each process"), std::string::npos) << told.errors;
  arguments.insert(arguments.end(), {"--require-sandbox", "full"});
  const Finished refused = RunBulkhead(arguments, "", prepare);
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.errors.find("cannot give all walls"), std::string::npos) << refused.errors;
}

// A sparse image that its file system cannot hold: the guest gets I/O errors, the user the reason, and the VM goes on.
TEST(Host, FullDiskIsAnIoErrorOfTheGuest) {
  const OpenDir place;
  constexpr unsigned kDiskBytes = 64 << 10;
  const std::string image = place.a() + "/image";
  const Finished run = RunBulkhead({"run", "--name", UniqueName(), "--console", "none", "--debug-console", "stdio",
                                    "--kernel", Payload("blk"), "--append", "sectors=32768", "--disk", image},
                                   "", [&](Launch&) {
                                     return EnterMountNamespace() && MountSmallDisk(place.a(), kDiskBytes) &&
                                            MakeSparseFile(image, 16 << 20);
                                   });
  EXPECT_EQ(run.status, 0) << run.errors;
  EXPECT_NE(run.output.find("FAIL"), std::string::npos) << run.output;
  EXPECT_NE(run.output.find("DONE"), std::string::npos) << run.output;
  EXPECT_NE(run.errors.find("disk0"), std::string::npos) << run.errors;
  EXPECT_NE(run.errors.find("No space left"), std::string::npos) << run.errors;
}

}  // namespace
}  // namespace bulkhead::test
