// SPDX-License-Identifier: Apache-2.0
// `bulkhead ps`, `stop` and `kill`: the VMs that run, through their control sockets.
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/runtime_dir.h"

namespace bulkhead::launcher {
namespace {

std::string Uptime(int64_t started_at_unix) {
  const int64_t seconds = std::time(nullptr) - started_at_unix;
  if (seconds < 60) return std::to_string(seconds) + "s";
  if (seconds < 3600) return std::to_string(seconds / 60) + "m";
  if (seconds < 86400) return std::to_string(seconds / 3600) + "h";
  return std::to_string(seconds / 86400) + "d";
}

void PrintRow(control::VmReport::Reader report) {
  std::string pids = std::to_string(report.getBrokerPid());
  for (auto process : report.getProcesses()) pids += "," + std::to_string(process.getPid());
  std::printf("%-20s %-9s %5u %8lluM %7s  %s\n", report.getName().cStr(), report.getState().cStr(),
              report.getVcpuCount(), static_cast<unsigned long long>(report.getMemoryBytes() >> 20),
              Uptime(report.getStartedAtUnix()).c_str(), pids.c_str());
}

nlohmann::json Json(control::VmReport::Reader report) {
  nlohmann::json out{{"name", report.getName().cStr()},
                     {"state", report.getState().cStr()},
                     {"vcpus", report.getVcpuCount()},
                     {"memory_bytes", report.getMemoryBytes()},
                     {"started_at", report.getStartedAtUnix()},
                     {"broker_pid", report.getBrokerPid()},
                     {"processes", nlohmann::json::array()}};
  for (auto process : report.getProcesses()) {
    out["processes"].push_back({{"name", process.getName().cStr()}, {"pid", process.getPid()}});
  }
  return out;
}

}  // namespace

int PsCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  nlohmann::json all = nlohmann::json::array();
  if (!options.json) std::printf("%-20s %-9s %5s %9s %7s  %s\n", "NAME", "STATE", "VCPUS", "MEMORY", "UPTIME", "PIDS");
  for (const std::string& name : RuntimeDir().LiveNames()) {
    try {
      VmConnection vm(io, name);
      auto response = vm.control().reportRequest().send().wait(io.waitScope);
      if (options.json) {
        all.push_back(Json(response.getReport()));
      } else {
        PrintRow(response.getReport());
      }
    } catch (const FatalError&) {  // it is just starting or has just ended
    } catch (const kj::Exception&) {
    }
  }
  if (options.json) std::printf("%s\n", all.dump(2).c_str());
  return 0;
}

int StopCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto vm = connection.control();
  vm.pressPowerButtonRequest().send().wait(io.waitScope);
  // The broker hangs up when it has ended.
  auto ended = vm.waitForEndRequest().send().then([](auto) { return true; }, [](kj::Exception&&) { return true; });
  auto late = io.provider->getTimer().afterDelay(options.timeout_s * kj::SECONDS).then([] { return false; });
  if (ended.exclusiveJoin(kj::mv(late)).wait(io.waitScope)) return 0;
  if (!options.force) {
    throw FatalError("VM '" + options.name + "': the guest did not shut down within " +
                     std::to_string(options.timeout_s) + " s; wait longer with --timeout, or end it with `bulkhead kill " +
                     options.name + "`");
  }
  return KillCommand(options);
}

int KillCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto vm = connection.control();
  auto ended = vm.waitForEndRequest().send().then([](auto) {}, [](kj::Exception&&) {});
  vm.killRequest().send().then([](auto) {}, [](kj::Exception&&) {}).wait(io.waitScope);
  ended.wait(io.waitScope);
  return 0;
}

}  // namespace bulkhead::launcher
