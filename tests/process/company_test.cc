// SPDX-License-Identifier: Apache-2.0
// What comes from outside a device's process, under a guest that checks all that it gets (tests/payload/endure.cc): a
// liar among the device processes, a tap that is taken away, an upgrade by a program that is none.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>

#include "tests/process/enduring_vm.h"

namespace bulkhead::test {
namespace {

bool AllSleep(pid_t pid) {
  const std::vector<std::string> threads = ThreadStatuses(pid);
  return !threads.empty() && std::ranges::all_of(threads, [](const std::string& status) {
    return status.find("State:\tS") != std::string::npos;
  });
}

// tests/jail/liar.cc, in the place of the entropy device. The others do their work, and die and are replaced as ever.
class BesideALiar : public testing::TestWithParam<const char*> {};

TEST_P(BesideALiar, OthersGoOn) {
  const TempDir product;
  CopyProduct(product.path());
  ReplaceProgram(product.path(), "bulkhead-rng", BuildDir() + "/tests/liar");
  EnduringVm vm({.more = {"--exit-deadline", "60000", "--device-restarts", "1000000"},
                 .build_dir = product.path(),
                 .name = UniqueName() + "-" + GetParam(),
                 .stranger = true});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  for (const std::string& device : vm.devices()) {
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
    vm.Lose(device, SIGKILL);
  }
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

INSTANTIATE_TEST_SUITE_P(Lies, BesideALiar, testing::Values("length", "storm", "endless_flood", "forward"));

TEST(TapGone, TheLinkGoesDownAndTheVmGoesOn) {
  if (!TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
  EnduringVm vm;
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  vm.network()->RemoveTap();
  const auto link_is_gone = [&] {
    return vm.Run({"set-link", vm.name(), "net0", "on"}).errors.find("its outside is gone") != std::string::npos;
  };
  EXPECT_TRUE(Eventually(link_is_gone)) << vm.said();
  // Nobody waits for what does not come by looking for it all the time.
  EXPECT_TRUE(Eventually([&] { return AllSleep(ProcessOf(vm.name(), "net0")); }));
  EXPECT_TRUE(vm.RoundsGoOn()) << vm.said();
  // Its successor finds the same.
  vm.Lose("net0", SIGKILL);
  EXPECT_TRUE(Eventually(link_is_gone)) << vm.said();
  EXPECT_TRUE(Eventually([&] { return AllSleep(ProcessOf(vm.name(), "net0")); }));
  EXPECT_TRUE(vm.RoundsGoOn()) << vm.said();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

// One that ends, or one that is of another kind.
TEST(Upgrade, WhatDoesNotTakeOverLeavesTheProgramBefore) {
  const TempDir product;
  CopyProduct(product.path());
  EnduringVm vm({.build_dir = product.path()});
  ASSERT_TRUE(vm.started()) << vm.command().errors();
  const std::string built = BuildDir() + "/libexec/";
  bool ends = false;
  for (const std::string& device : vm.devices()) {
    const std::string kind = "bulkhead-" + device.substr(0, device.find_last_not_of("0123456789") + 1);
    const std::string other = built + (kind == "bulkhead-chipset" ? "bulkhead-rng" : "bulkhead-chipset");
    ReplaceProgram(product.path(), kind, ends ? "/bin/true" : other);
    const Finished refused = vm.Run({"upgrade", vm.name(), device});
    EXPECT_EQ(refused.status, 1) << device;
    EXPECT_NE(refused.errors.find("what is installed does not take over"), std::string::npos) << refused.errors;
    EXPECT_NE(refused.errors.find("the program before goes on"), std::string::npos) << refused.errors;
    EXPECT_TRUE(vm.GoesOn()) << device << "\n" << vm.said();
    ends = !ends;
  }
  // That is the one that comes after a death, too.
  vm.Lose("disk0", SIGKILL);
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  ReplaceProgram(product.path(), "bulkhead-disk", built + "bulkhead-disk");
  const Finished upgraded = vm.Run({"upgrade", vm.name(), "disk0"});
  EXPECT_EQ(upgraded.status, 0) << upgraded.errors;
  EXPECT_TRUE(vm.GoesOn()) << vm.said();
  vm.Stop();
  vm.ExpectConsoleComplete();
}

}  // namespace
}  // namespace bulkhead::test
