// SPDX-License-Identifier: Apache-2.0
// `bulkhead ps`, `stop`, `kill`, `throttle`, `set-link` and `upgrade`: the VMs that run, through their control sockets.
#include <signal.h>

#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/runtime_dir.h"
#include "broker/launcher/vm_report.h"
#include "broker/launcher/vm_resources.h"

namespace bulkhead::launcher {
namespace {

constexpr auto kGonePause = 10 * kj::MILLISECONDS;
constexpr int kGoneAttempts = 1000;

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
  nlohmann::json out{{"name", report.getName().cStr()},         {"state", report.getState().cStr()},
                     {"vcpus", report.getVcpuCount()},          {"memory_bytes", report.getMemoryBytes()},
                     {"started_at", report.getStartedAtUnix()}, {"broker_pid", report.getBrokerPid()},
                     {"processes", nlohmann::json::array()}};
  for (auto process : report.getProcesses()) {
    out["processes"].push_back({{"name", process.getName().cStr()}, {"pid", process.getPid()}});
  }
  return out;
}

// One VM's line; one that does not answer is shown all the same, so that it can be killed by its name.
void PrintVm(kj::AsyncIoContext& io, const std::string& name, nlohmann::json* all) {
  const char* state = "starting";  // or just ending
  try {
    VmConnection connection(io, name, RuntimeDir::Whose::kAnyonesForRoot);
    KJ_IF_MAYBE (response, AskForReport(io, connection.control())) {
      if (all != nullptr) {
        all->push_back(Json(response->getReport()));
      } else {
        PrintRow(response->getReport());
      }
      return;
    }
    state = "silent";
  } catch (const FatalError&) {
  }
  if (all != nullptr) {
    all->push_back({{"name", name}, {"state", state}});
  } else {
    std::printf("%-20s %-9s %5s %9s %7s  %s\n", name.c_str(), state, "-", "-", "-", "-");
  }
}

// Resolves to true when the VM has ended, which its broker says or shows by hanging up, to false when the time is up.
kj::Promise<bool> EndsWithin(kj::AsyncIoContext& io, control::VmControl::Client vm, kj::Duration time) {
  auto ended = vm.waitForEndRequest().send().then([](auto) { return true; }, [](kj::Exception&&) { return true; });
  return ended.exclusiveJoin(io.provider->getTimer().afterDelay(time).then([] { return false; }));
}

// Returns when nothing is left of a VM that has ended, so that its name and its images can be used again.
void WaitUntilGone(kj::AsyncIoContext& io, const std::string& name) {
  const RuntimeDir directory;
  for (int attempt = 0; directory.Lives(name); ++attempt) {
    if (attempt == kGoneAttempts) {
      throw FatalError("VM '" + name +
                       "': it has ended, but its `bulkhead run` has not; is that stopped, or its output "
                       "not being read?");
    }
    io.provider->getTimer().afterDelay(kGonePause).wait(io.waitScope);
  }
}

// A broker that does not answer is ended by signal; everything of the VM goes with it.
void KillVm(kj::AsyncIoContext& io, VmConnection& connection, const std::string& name) {
  auto vm = connection.control();
  auto ended = EndsWithin(io, vm, kPatience);
  SendAndForget(vm.killRequest());
  if (!ended.wait(io.waitScope) && ::kill(connection.broker_pid(), SIGKILL) != 0 && errno != ESRCH) {
    ThrowErrno("VM '" + name + "': kill its broker");
  }
  WaitUntilGone(io, name);
}

// Waits for the answer to a call that changes something of a VM.
void Await(kj::AsyncIoContext& io, const std::string& name, kj::Promise<void> call) {
  auto in_time = io.provider->getTimer().afterDelay(kPatience).then([]() -> void { throw Failure("no answer"); });
  try {
    call.exclusiveJoin(kj::mv(in_time)).wait(io.waitScope);
  } catch (const kj::Exception& error) {
    throw FatalError("VM '" + name + "': " + ReasonOf(error));
  }
}

}  // namespace

int PsCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  nlohmann::json all = nlohmann::json::array();
  if (!options.json) std::printf("%-20s %-9s %5s %9s %7s  %s\n", "NAME", "STATE", "VCPUS", "MEMORY", "UPTIME", "PIDS");
  const RuntimeDir directory(RuntimeDir::Whose::kAnyonesForRoot);
  for (const std::string& name : directory.LiveNames()) PrintVm(io, name, options.json ? &all : nullptr);
  if (options.json) std::printf("%s\n", all.dump(2).c_str());
  return 0;
}

int StopCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto vm = connection.control();
  auto ended = EndsWithin(io, vm, options.timeout_s * kj::SECONDS);
  SendAndForget(vm.pressPowerButtonRequest());
  if (ended.wait(io.waitScope)) {
    WaitUntilGone(io, options.name);
    return 0;
  }
  if (options.force) {
    KillVm(io, connection, options.name);
    return 0;
  }
  throw FatalError("VM '" + options.name + "': the guest did not shut down within " +
                   std::to_string(options.timeout_s) +
                   " s; wait longer with --timeout, or end it with `bulkhead kill " + options.name + "`");
}

int ThrottleCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto request = connection.control().throttleRequest();
  request.setDevice(options.device);
  FillThrottle(options.throttle, request.initLimits());
  Await(io, options.name, request.send().ignoreResult());
  return 0;
}

int SetLinkCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto request = connection.control().setLinkRequest();
  request.setInterface(options.device);
  request.setUp(options.link_up);
  Await(io, options.name, request.send().ignoreResult());
  return 0;
}

// No time limit: each device takes its time, and its broker watches over that.
int UpgradeCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto request = connection.control().upgradeRequest();
  request.setDevice(options.device);
  try {
    const auto response = request.send().wait(io.waitScope);
    for (auto device : response.getDevices()) {
      std::printf("%s: replaced; it served nothing for %.1f ms\n", device.getName().cStr(),
                  static_cast<double>(device.getPauseNs()) / 1e6);
    }
  } catch (const kj::Exception& error) {
    throw FatalError("VM '" + options.name + "': " + ReasonOf(error));
  }
  return 0;
}

int KillCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  KillVm(io, connection, options.name);
  return 0;
}

}  // namespace bulkhead::launcher
