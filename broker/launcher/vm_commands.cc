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
// Each of kPatience, or shorter: a busy host's broker waits for each process of the VM to turn to it.
constexpr int kTakeOverAttempts = 20;

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

// Sends a request made by `ask`, and waits for the VM's end: true; false: the time is up. Another broker may take over
// meanwhile, and is asked anew.
template <typename Ask>
bool EndsWithin(kj::AsyncIoContext& io, const std::string& name, kj::Duration time, Ask ask) {
  kj::Timer& timer = io.provider->getTimer();
  const auto until = timer.now() + time;
  const RuntimeDir directory;
  while (directory.Lives(name)) {
    try {
      VmConnection connection(io, name);
      auto vm = connection.control();
      SendAndForget(ask(vm));
      auto ended = vm.waitForEndRequest().send().then([](auto) { return true; });
      return ended.exclusiveJoin(timer.atTime(until).then([] { return false; })).wait(io.waitScope);
    } catch (const kj::Exception& error) {
      if (error.getType() != kj::Exception::Type::DISCONNECTED) throw;
    } catch (const FatalError&) {
      // Just starting or ending.
    }
    if (timer.now() >= until) return false;
    timer.afterDelay(kGonePause).wait(io.waitScope);
  }
  return true;
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

// A broker that does not answer is ended by signal, and the one that takes its place is asked.
void KillVm(kj::AsyncIoContext& io, const std::string& name) {
  const auto ask = [](control::VmControl::Client& vm) { return vm.killRequest(); };
  const pid_t broker = VmConnection(io, name).broker_pid();
  if (!EndsWithin(io, name, kPatience, ask)) {
    if (::kill(broker, SIGKILL) != 0 && errno != ESRCH) ThrowErrno("VM '" + name + "': kill its broker");
    EndsWithin(io, name, kPatience, ask);
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
  { const VmConnection exists(io, options.name); }
  const auto ask = [](control::VmControl::Client& vm) { return vm.pressPowerButtonRequest(); };
  if (EndsWithin(io, options.name, options.timeout_s * kj::SECONDS, ask)) {
    WaitUntilGone(io, options.name);
    return 0;
  }
  if (options.force) {
    KillVm(io, options.name);
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

// The broker hangs up, and what it serves next is by another one.
int UpgradeBroker(kj::AsyncIoContext& io, VmConnection& connection, const std::string& name) {
  auto request = connection.control().upgradeRequest();
  request.setDevice("broker");
  try {
    request.send().ignoreResult().wait(io.waitScope);
  } catch (const kj::Exception& error) {
    if (error.getType() != kj::Exception::Type::DISCONNECTED) throw FatalError("VM '" + name + "': " + ReasonOf(error));
  }
  for (int attempt = 0; attempt < kTakeOverAttempts; ++attempt) {
    VmConnection next(io, name);
    KJ_IF_MAYBE (response, AskForReport(io, next.control())) {
      std::printf("broker: replaced by process %d\n", response->getReport().getBrokerPid());
      return 0;
    }
  }
  throw FatalError("VM '" + name + "': no other broker has taken over");
}

// No time limit: each device takes its time, and its broker watches over that.
int UpgradeCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  if (options.device == "broker") return UpgradeBroker(io, connection, options.name);
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
  KillVm(io, options.name);
  return 0;
}

}  // namespace bulkhead::launcher
