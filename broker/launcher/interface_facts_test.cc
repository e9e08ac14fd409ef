// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/interface_facts.h"

#include <gtest/gtest.h>

#include "broker/launcher/inspect_output.h"
#include "ipc/rpc.h"

namespace bulkhead::launcher {
namespace {

// A VM with an interface that has carried something and one that does not answer.
class FakeVm final : public control::VmControl::Server {
 private:
  kj::Promise<void> reportNets(ReportNetsContext context) override {
    auto out = context.getResults().initInterfaces(2);
    out[0].setName("net0");
    out[0].setAnswered(true);
    auto report = out[0].initReport();
    auto received = report.initReceived();
    received.setPackets(1);
    received.setBytes(60);
    received.setDropped(2);
    auto sent = report.initSent();
    sent.setPackets(3);
    sent.setBytes(~uint64_t{0});
    sent.setDropped(5);
    sent.setRefused(4);
    out[1].setName("net1");
    return kj::READY_NOW;
  }
};

// One whose interface's packets the kernel carries.
class KernelVm final : public control::VmControl::Server {
 private:
  kj::Promise<void> reportNets(ReportNetsContext context) override {
    auto out = context.getResults().initInterfaces(1)[0];
    out.setName("net0");
    out.setAnswered(true);
    out.initReport().setLink(control::LinkState::DOWN);
    return kj::READY_NOW;
  }
};

class SilentVm final : public control::VmControl::Server {};

// A process that runs, of which nothing is known.
ProcessFacts Running(const std::string& name) {
  ProcessFacts facts;
  facts.name = name;
  facts.exists = true;
  return facts;
}

Inspection Inspect(Interfaces interfaces) {
  return {.vm = {.name = "web1", .vcpus = 1, .memory_bytes = 0, .processes = {Running("net0"), Running("net1")}},
          .state = "running",
          .filters = {Error{ENOENT, "none"}, Error{ENOENT, "none"}},
          .interfaces = std::move(interfaces)};
}

TEST(InterfaceFacts, AreShownWithTheirProcesses) {
  auto io = kj::setupAsyncIo();
  const Inspection inspection = Inspect(AskForInterfaces(io, kj::heap<FakeVm>()));
  const std::string table = FormatTable(inspection);
  EXPECT_NE(table.find("  link          up\n"
                       "  received      1 packets, 60 bytes, 2 dropped\n"
                       "  sent          3 packets, 18446744073709551615 bytes, 5 dropped, "
                       "4 of these refused\n"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("  link          no answer\n"), std::string::npos) << table;
  const auto json = FormatJson(inspection);
  const auto& answered = json.at("processes").at(0).at("interface");
  EXPECT_EQ(answered.at("link"), "up");
  EXPECT_EQ(answered.at("received"), (nlohmann::json{{"packets", 1}, {"bytes", 60}, {"dropped", 2}, {"refused", 0}}));
  EXPECT_EQ(answered.at("sent"),
            (nlohmann::json{{"packets", 3}, {"bytes", ~uint64_t{0}}, {"dropped", 5}, {"refused", 4}}));
  EXPECT_TRUE(json.at("processes").at(1).at("interface").is_null());
}

TEST(InterfaceFacts, WhatTheKernelCountsIsNotShownAsNothing) {
  auto io = kj::setupAsyncIo();
  const Inspection inspection = Inspect(AskForInterfaces(io, kj::heap<KernelVm>()));
  const std::string table = FormatTable(inspection);
  EXPECT_NE(table.find("  link          down\n"
                       "  received      counted by the kernel, at the tap\n"
                       "  sent          counted by the kernel, at the tap\n"),
            std::string::npos)
      << table;
  const auto json = FormatJson(inspection);
  EXPECT_TRUE(json.at("processes").at(0).at("interface").at("received").is_null());
}

TEST(InterfaceFacts, AVmThatDoesNotKnowOfThemHasNone) {
  auto io = kj::setupAsyncIo();
  EXPECT_TRUE(AskForInterfaces(io, kj::heap<SilentVm>()).empty());
  EXPECT_FALSE(FormatJson(Inspect({})).at("processes").at(0).contains("interface"));
}

}  // namespace
}  // namespace bulkhead::launcher
