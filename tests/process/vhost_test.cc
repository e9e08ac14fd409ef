// SPDX-License-Identifier: Apache-2.0
// VMs whose packets the kernel carries: what they need of the host, what is to be seen of them, and what is left.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>

#include <nlohmann/json.hpp>

#include "tests/process/harness.h"
#include "tests/process/surroundings.h"
#include "tests/process/vhost.h"

namespace bulkhead::test {
namespace {

std::vector<std::string> Arguments(const std::string& name, const std::string& payload,
                                   const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{"run",
                                     "--name",
                                     name,
                                     "--kernel",
                                     Payload(payload),
                                     "--console",
                                     "none",
                                     "--debug-console",
                                     "stdio",
                                     "--net",
                                     "tap=tap0,vhost=on,mac-spoofing=allow"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

bool EnterNetwork(Launch&) { return ::unshare(CLONE_NEWNET) == 0; }

TEST(Vhost, WhereTheHostHasNoneTheModuleIsNamed) {
  const auto prepare = [](Launch&) { return EnterMountNamespace() && HideKvm(); };
  const Finished run = RunBulkhead(Arguments(UniqueName(), "hello"), "", prepare);
  ASSERT_NE(run.status, kNotPrepared);
  EXPECT_EQ(run.status, 1);
  EXPECT_NE(run.errors.find("modprobe vhost_net"), std::string::npos) << run.errors;
  const Finished check = RunBulkhead({"check"}, "", prepare);
  EXPECT_NE(check.output.find("modprobe vhost_net"), std::string::npos) << check.output;
}

class VhostTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoVhost(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(VhostTest, CheckFindsIt) {
  const auto report = nlohmann::json::parse(RunBulkhead({"check", "--json"}).output);
  const auto& last = report.at("checks").back();
  EXPECT_EQ(last.at("name"), "vhost-net");
  EXPECT_EQ(last.at("status"), "ok");
}

TEST_F(VhostTest, InspectShowsItAndFindsNothingElseAmiss) {
  const std::string name = UniqueName();
  Command vm(Arguments(name, "idle"), EnterNetwork);
  ASSERT_TRUE(vm.WaitForOutput("idle")) << vm.errors();
  const Finished verify = RunBulkhead({"inspect", name, "--verify"});
  EXPECT_EQ(verify.status, 0) << verify.output << verify.errors;
  const auto report = nlohmann::json::parse(RunBulkhead({"inspect", name, "--json"}).output);
  for (const auto& process : report.at("processes")) {
    if (process.at("name") != "net0") continue;
    EXPECT_GE(process.at("descriptors").at("by_kind").at("vhost-net"), 1);
  }
}

TEST_F(VhostTest, ItsInterfaceTakesNoLimitsLater) {
  const std::string name = UniqueName();
  Command vm(Arguments(name, "idle"), EnterNetwork);
  ASSERT_TRUE(vm.WaitForOutput("idle")) << vm.errors();
  const Finished throttle = RunBulkhead({"throttle", name, "net0", "bps=1M"});
  EXPECT_EQ(throttle.status, 1);
  EXPECT_NE(throttle.errors.find("of which that can be asked; it has none"), std::string::npos) << throttle.errors;
}

// The next one's is opened by the launcher, whichever broker asks.
TEST_F(VhostTest, AnotherProcessHasAVhostOfItsOwn) {
  const std::string name = UniqueName();
  Command vm(Arguments(name, "idle", {"--device-restarts", "100"}), EnterNetwork);
  ASSERT_TRUE(vm.WaitForOutput("idle")) << vm.errors();
  for (unsigned death = 0; death < 4; ++death) {
    const auto replace = [&](const std::string& process) {
      const pid_t before = ProcessOf(name, process);
      EXPECT_EQ(::kill(before, SIGKILL), 0);
      EXPECT_TRUE(vm.WaitUntil([&] {
        const pid_t now = ProcessOf(name, process);
        return now > 0 && now != before;
      })) << process
          << "\n"
          << vm.errors();
      return before;
    };
    const pid_t net = replace("net0");
    EXPECT_TRUE(Eventually([&] { return HasVhostThreads(ProcessOf(name, "net0")) && !HasVhostThreads(net); }));
    if (death == 1) replace("broker");
  }
  EXPECT_EQ(RunBulkhead({"upgrade", name, "net0"}).status, 0);
  EXPECT_EQ(RunBulkhead({"kill", name}).status, 0);
  vm.Wait();
  EXPECT_TRUE(ProcessesOf(name).empty());
}

// Nobody else has kept a descriptor by which the kernel would go on.
TEST_F(VhostTest, TheKernelStopsWithTheProcessAndTheVmGoesOn) {
  const std::string name = UniqueName();
  Command vm(Arguments(name, "idle", {"--device-restarts", "0"}), EnterNetwork);
  ASSERT_TRUE(vm.WaitForOutput("idle")) << vm.errors();
  const pid_t net = ProcessOf(name, "net0");
  EXPECT_TRUE(HasVhostThreads(net));
  EXPECT_EQ(::kill(net, SIGKILL), 0);
  EXPECT_TRUE(Eventually([&] { return !HasVhostThreads(net); }));
  EXPECT_EQ(RunBulkhead({"inspect", name}).status, 0);
  EXPECT_EQ(RunBulkhead({"kill", name}).status, 0);
  vm.Wait();
  EXPECT_TRUE(ProcessesOf(name).empty());
}

// Each boot has a vhost of its own, as one belongs to the process that took it first.
TEST_F(VhostTest, IsThereAgainAfterAReset) {
  Command vm(Arguments(UniqueName(), "reset", {"--append", "how=cf9", "--reboot"}), EnterNetwork);
  const auto boots = [&] {
    size_t count = 0;
    for (size_t at = 0; (at = vm.output().find("resetting", at)) != std::string::npos; ++at) ++count;
    return count;
  };
  EXPECT_TRUE(vm.WaitUntil([&] { return boots() >= 3; })) << vm.output() << vm.errors();
}

}  // namespace
}  // namespace bulkhead::test
