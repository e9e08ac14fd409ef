// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <functional>

#include "broker/device_plan.h"
#include "device-procs/net/net_settings.capnp.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

class NetPlan : public testing::Test {
 protected:
  DevicePlan& Plan(unsigned taps, const std::function<void(control::NetConfig::Builder)>& configure = nullptr) {
    config_ = std::make_unique<capnp::MallocMessageBuilder>();
    auto vm = config_->initRoot<control::VmConfig>();
    auto net = vm.initNets(1)[0];
    net.initMac(6)[0] = 2;
    net.setMtu(1500);
    auto files = net.initTaps(taps);
    for (unsigned i = 0; i < taps; ++i) files.set(i, MakeFile(OwnFd(::memfd_create("tap", MFD_CLOEXEC))));
    if (configure) configure(net);
    Planner planner(vm.asReader(), io_->waitScope);
    PlanNets(planner);
    plans_ = planner.Take();
    return *plans_.at(0);
  }

  // On the heap: their destructors may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::unique_ptr<capnp::MallocMessageBuilder> config_;
  std::vector<std::unique_ptr<DevicePlan>> plans_;
};

TEST_F(NetPlan, EachQueueOfTheTapIsAPairWithAThread) {
  const DevicePlan& plan = Plan(4);
  EXPECT_EQ(plan.name, "net0");
  EXPECT_EQ(plan.files.size(), 4u);
  EXPECT_EQ(plan.functions.at(0).queues, 9);
  EXPECT_EQ(plan.functions.at(0).vectors, 10);
  EXPECT_EQ(plan.limits.threads, PlannedLimits().threads + 4);
  EXPECT_TRUE(plan.takes_throttle);
}

TEST_F(NetPlan, SettingsAreThoseOfTheConfiguration) {
  const DevicePlan& plan = Plan(1, [](control::NetConfig::Builder net) {
    net.setAnyMac(true);
    net.initIpAddresses(1).init(0, 4)[0] = 10;
    net.initThrottle().setOperationsPerSecond(7);
    net.setLinkDown(true);
  });
  const auto settings = plan.settings->getRoot<net::NetSettings>().asReader();
  EXPECT_EQ(settings.getMac()[0], 2);
  EXPECT_EQ(settings.getMtu(), 1500);
  EXPECT_TRUE(settings.getAnyMac());
  EXPECT_EQ(settings.getIpAddresses()[0][0], 10);
  EXPECT_EQ(settings.getThrottle().getOperationsPerSecond(), 7u);
  EXPECT_TRUE(settings.getLinkDown());
}

class FilesAnew final : public control::FileSource::Server {
 public:
  kj::Promise<void> open(OpenContext context) override {
    context.getResults().setFile(MakeFile(OwnFd(::memfd_create("vhost", MFD_CLOEXEC))));
    return kj::READY_NOW;
  }
};

// As a launcher asks for it.
void AskForVhost(control::NetConfig::Builder net) {
  net.setAnyMac(true);
  net.setVhost(kj::heap<FilesAnew>());
}

TEST_F(NetPlan, WithVhostTheKernelHasTheThreadsAndNothingIsLimited) {
  Plan(2, AskForVhost);
  DevicePlan& plan = *plans_[0];
  EXPECT_EQ(plan.files.size(), 2u);
  // Another's are others.
  for (unsigned process = 0; process < 2; ++process) {
    plan.OpenSources().wait(io_->waitScope);
    EXPECT_EQ(plan.given_away.size(), 2u);
  }
  EXPECT_EQ(plan.limits.threads, PlannedLimits().threads);
  EXPECT_EQ(plan.limits.kernel_threads, PlannedLimits().kernel_threads + 2);
  EXPECT_FALSE(plan.takes_throttle);
  EXPECT_TRUE(plan.settings->getRoot<net::NetSettings>().asReader().getVhost());
}

TEST_F(NetPlan, NoWallIsAskedForThatVhostCannotKeep) {
  const auto expect_refused = [this](const std::function<void(control::NetConfig::Builder)>& change) {
    EXPECT_THROW(Plan(2, [&](auto net) { AskForVhost(net), change(net); }), FatalError);
  };
  expect_refused([](auto net) { net.setAnyMac(false); });
  expect_refused([](auto net) { net.initIpAddresses(1).init(0, 4); });
  expect_refused([](auto net) { net.initThrottle().setBytesPerSecond(1); });
  expect_refused([](auto net) { net.initThrottle().setOperationsPerSecond(1); });
}

control::UserNet::Builder AskForUserNet(control::NetConfig::Builder net) {
  auto user = net.initUser();
  user.initNetwork4(4)[0] = 10;
  user.setPrefix4(24);
  user.setMtu(1500);
  return user;
}

TEST_F(NetPlan, UserModeNetworkingIsASecondProcessThatTheGuestDoesNotReach) {
  const DevicePlan& net = Plan(0, [](auto config) { AskForUserNet(config); });
  EXPECT_EQ(net.name, "net0");
  EXPECT_TRUE(net.files.empty() && net.packets && !net.keeps_network);
  EXPECT_EQ(net.functions.at(0).queues, 3);
  ASSERT_EQ(plans_.size(), 2u);
  const DevicePlan& user = *plans_[1];
  EXPECT_EQ(user.name, "usernet0");
  EXPECT_EQ(user.executable, "bulkhead-usernet");
  EXPECT_EQ(user.outside_of, "net0");
  EXPECT_TRUE(user.keeps_network && user.packets && !user.uses_guest_memory && !user.reached_by_guest());
  EXPECT_EQ(user.settings->getRoot<control::UserNet>().asReader().getPrefix4(), 24);
}

TEST_F(NetPlan, OfUserModeNetworkingNothingIsTakenThatCannotBe) {
  const auto expect_refused = [this](const std::function<void(control::UserNet::Builder)>& change) {
    EXPECT_THROW(Plan(0, [&](auto config) { change(AskForUserNet(config)); }), FatalError);
  };
  EXPECT_THROW(Plan(1, [](auto config) { AskForUserNet(config); }), FatalError);
  expect_refused([](auto user) { user.initNetwork4(0); });
  expect_refused([](auto user) { user.initNetwork4(5); });
  expect_refused([](auto user) { user.setPrefix4(28); });
  expect_refused([](auto user) { user.initNetwork6(4); });
  expect_refused([](auto user) { user.setMtu(67); });
  expect_refused([](auto user) { user.setMtu(65522); });
  expect_refused([](auto user) { user.initNetwork6(16), user.setMtu(1279); });
  expect_refused([](auto user) { user.initDns4(3); });
  expect_refused([](auto user) { user.setHostname(std::string(64, 'x')); });
  expect_refused([](auto user) { user.initRules(1); });
  expect_refused([](auto user) { user.initRules(257); });
  expect_refused([](auto user) {
    auto rule = user.initRules(1)[0];
    rule.initAddress(4);
    rule.setPrefix(33);
  });
  // A forward without its socket.
  expect_refused([](auto user) {
    auto forward = user.initHostForwards(1)[0];
    forward.initGuestAddress(4);
    forward.setGuestPort(22);
  });
  expect_refused([](auto user) { user.initGuestForwards(1); });
}

TEST_F(NetPlan, WhatNoLauncherSendsIsRefused) {
  EXPECT_THROW(Plan(0), FatalError);
  EXPECT_THROW(Plan(9), FatalError);
  EXPECT_THROW(Plan(1, [](auto net) { net.initMac(5); }), FatalError);
  EXPECT_THROW(Plan(1, [](auto net) { net.getMac()[0] = 3; }), FatalError);
  EXPECT_THROW(Plan(1, [](auto net) { net.setMtu(10); }), FatalError);
  EXPECT_THROW(Plan(1, [](auto net) { net.initIpAddresses(1).init(0, 5); }), FatalError);
}

}  // namespace
}  // namespace bulkhead::broker
