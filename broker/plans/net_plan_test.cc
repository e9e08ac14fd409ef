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
  });
  const auto settings = plan.settings->getRoot<net::NetSettings>().asReader();
  EXPECT_EQ(settings.getMac()[0], 2);
  EXPECT_EQ(settings.getMtu(), 1500);
  EXPECT_TRUE(settings.getAnyMac());
  EXPECT_EQ(settings.getIpAddresses()[0][0], 10);
  EXPECT_EQ(settings.getThrottle().getOperationsPerSecond(), 7u);
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
