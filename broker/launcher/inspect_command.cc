// SPDX-License-Identifier: Apache-2.0
// `bulkhead inspect`: a VM's processes, and what the kernel (not the program) says of them.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/expectations_filter.h"
#include "broker/launcher/inspect_output.h"
#include "broker/launcher/seccomp_facts.h"
#include "broker/launcher/vm_report.h"

namespace bulkhead::launcher {
namespace {

FilterReading ReadFilter(const ProcessFacts& process) {
  if (process.threads.empty() || process.threads.front().seccomp_mode != 2) return Error{ENOENT, "it has no filter"};
  return ReadSeccompProgram(process.pid);
}

// The broker says which processes there are; which is the broker, and what they all are, the kernel says.
Inspection Inspect(control::VmReport::Reader report, pid_t broker_pid) {
  Inspection inspection{.vm = {.name = report.getName().cStr(),
                               .vcpus = report.getVcpuCount(),
                               .memory_bytes = report.getMemoryBytes(),
                               .processes = {ReadProcessFacts("broker", broker_pid)}},
                        .state = report.getState().cStr(),
                        .filters = {},
                        .interfaces = {}};
  auto& processes = inspection.vm.processes;
  for (auto process : report.getProcesses()) {
    processes.push_back(ReadProcessFacts(process.getName().cStr(), process.getPid()));
    processes.back().granted = {.files = process.getFiles(), .queues = process.getQueues()};
  }
  for (const ProcessFacts& process : processes) inspection.filters.push_back(ReadFilter(process));
  return inspection;
}

// Adds what is wrong with the filters.
void CompareFilters(const Inspection& inspection, const std::string& executables, Findings& findings) {
  std::map<std::string, Result<std::vector<std::string>>> expected;
  bool unseen = false;
  for (size_t i = 0; i < inspection.filters.size(); ++i) {
    const ProcessFacts& process = inspection.vm.processes[i];
    const FilterReading& filter = inspection.filters[i];
    const Expectation* kind = FindExpectation(process.name);
    const auto differs = [&](const std::string& what) { findings.differences.push_back(process.name + ": " + what); };
    if (kind == nullptr || !process.exists) continue;
    unseen = unseen || NeedsRoot(filter);
    if (!filter.ok()) {
      // A thread without a filter has its own line.
      if (!NeedsRoot(filter) && filter.error().code != ENOENT) differs(filter.error().message);
      continue;
    }
    if (WalkSeccompProgram(*filter).other_tables) differs("may make system calls by i386 or x32 numbers");
    const std::string executable = executables + "/" + kind->executable;
    const auto found = expected.try_emplace(executable, ExpectedFilters(executable)).first;
    if (!found->second.ok()) {
      differs(found->second.error().message);
    } else if (std::find(found->second->begin(), found->second->end(), *filter) == found->second->end()) {
      differs("its system call filter is not the one of " + executable);
    }
  }
  if (unseen) findings.unseen.emplace_back("system call filters");
}

// Lines for what differs, or one that says that nothing does.
int Verify(const Inspection& inspection) {
  const std::string executables = HelpersDirectory();
  Findings findings = CompareWithExpectations(inspection.vm, executables);
  CompareFilters(inspection, executables, findings);
  for (const std::string& line : findings.differences) fmt::print("{}: {}\n", inspection.vm.name, line);
  if (!findings.unseen.empty()) {
    fmt::print("{}: cannot be verified by this user, but by root: {}\n", inspection.vm.name,
               fmt::join(findings.unseen, ", "));
  }
  if (!findings.differences.empty() || !findings.unseen.empty()) return 1;
  fmt::print("{}: {} processes verified\n", inspection.vm.name, inspection.vm.processes.size());
  return 0;
}

}  // namespace

int InspectCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name, RuntimeDir::Whose::kAnyonesForRoot);
  auto answer = AskForReport(io, connection.control());
  KJ_IF_MAYBE (response, answer) {
    Inspection inspection = Inspect(response->getReport(), connection.broker_pid());
    if (options.verify) return Verify(inspection);
    inspection.interfaces = AskForInterfaces(io, connection.control());
    if (options.json) {
      fmt::print("{}\n", FormatJson(inspection).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    } else {
      fmt::print("{}", FormatTable(inspection));
    }
    return 0;
  }
  throw FatalError("VM '" + options.name + "': its broker (process " + std::to_string(connection.broker_pid()) +
                   ") does not answer; end the VM with `bulkhead kill " + options.name + "`");
}

}  // namespace bulkhead::launcher
