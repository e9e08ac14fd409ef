// SPDX-License-Identifier: Apache-2.0
// What comes from outside a device's process, under a guest that checks all that it gets (tests/payload/endure.cc).
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

}  // namespace
}  // namespace bulkhead::test
