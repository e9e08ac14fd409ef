// SPDX-License-Identifier: Apache-2.0
// `bulkhead check`: what this host can do, found by trying.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/vhost_net.h"

namespace bulkhead::launcher {
namespace {

using Status = control::ProbeReport::Status;

const char* Word(Status status) {
  switch (status) {
    case Status::OK:
      return "ok";
    case Status::LIMITED:
      return "limited";
    case Status::FAILED:
      return "FAILED";
  }
  return "?";
}

// What only some options need.
struct Extra {
  const char* name;
  const char* status;
  std::string detail;
};

Extra FindVhostNet() {
  constexpr const char* kName = "vhost-net";
  try {
    OpenVhostNet("only --net ..,vhost=on needs it");
    return {kName, "ok", "for --net ..,vhost=on"};
  } catch (const FatalError& error) {
    return {kName, "absent", error.what()};
  }
}

void PrintTable(control::ProbeReport::Reader report, const Extra& extra) {
  for (auto check : report.getChecks()) {
    std::printf("%-38s %-8s %s\n", check.getName().cStr(), Word(check.getStatus()), check.getDetail().cStr());
  }
  std::printf("%-38s %-8s %s\n", extra.name, extra.status, extra.detail.c_str());
  std::printf("%-38s %s\n", "stock kernels", report.getStockKernels() ? "can run here" : "cannot run here");
}

void PrintJson(control::ProbeReport::Reader report, const Extra& extra) {
  nlohmann::json out{{"stock_kernels", report.getStockKernels()}, {"checks", nlohmann::json::array()}};
  for (auto check : report.getChecks()) {
    out["checks"].push_back(
        {{"name", check.getName().cStr()}, {"status", Word(check.getStatus())}, {"detail", check.getDetail().cStr()}});
  }
  out["checks"].push_back({{"name", extra.name}, {"status", extra.status}, {"detail", extra.detail}});
  std::printf("%s\n", out.dump(2).c_str());
}

// The first thing that stands in the way of a stock kernel.
int PrintObstacle(control::ProbeReport::Reader report) {
  if (report.getStockKernels()) return 0;
  for (auto check : report.getChecks()) {
    if (check.getStatus() == Status::OK) continue;
    std::printf("%s: %s\n", check.getName().cStr(), check.getDetail().cStr());
    break;
  }
  return 1;
}

capnp::Response<control::Broker::ProbeResults> Probe(kj::AsyncIoContext& io, BrokerProcess& broker) {
  try {
    return broker.broker().probeRequest().send().wait(io.waitScope);
  } catch (const kj::Exception& error) {
    if (error.getType() != kj::Exception::Type::DISCONNECTED) throw;
    throw FatalError(broker.DescribeEnd());
  }
}

}  // namespace

int CheckCommand(const CheckOptions& options) {
  auto io = kj::setupAsyncIo();
  BrokerProcess broker(io, "bulkhead:check broker");
  auto response = Probe(io, broker);
  const auto report = response.getReport();
  if (options.stock_kernels) return PrintObstacle(report);
  if (options.json) {
    PrintJson(report, FindVhostNet());
  } else {
    PrintTable(report, FindVhostNet());
  }
  for (auto check : report.getChecks()) {
    if (check.getStatus() == Status::FAILED) return 1;
  }
  return 0;
}

}  // namespace bulkhead::launcher
