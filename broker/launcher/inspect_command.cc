// SPDX-License-Identifier: Apache-2.0
// `bulkhead inspect`: a VM's processes, and what the kernel (not the program) says of them.
#include <dirent.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "broker/launcher/broker_process.h"
#include "broker/launcher/commands.h"
#include "broker/launcher/vm_report.h"

namespace bulkhead::launcher {
namespace {

// What /proc tells of one process; empty strings where this user may not look.
struct ProcessFacts {
  std::string name;
  int pid = 0;
  std::map<std::string, std::string> status;  // fields of /proc/PID/status
  std::map<std::string, std::string> namespaces;
  std::string descriptors;  // their number
  std::string pss_kb;       // its share of the memory it has mapped, guest memory included
};

// The "Name: value" lines of a file in /proc.
std::map<std::string, std::string> ReadFields(const std::string& path) {
  std::map<std::string, std::string> fields;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    fields[line.substr(0, colon)] = value == std::string::npos ? "" : line.substr(value);
  }
  return fields;
}

std::string FirstWord(const std::string& text) { return text.substr(0, text.find_first_of(" \t")); }

std::string ReadLink(const std::string& path) {
  std::array<char, 128> target;
  const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
  return length > 0 ? std::string(target.data(), static_cast<size_t>(length)) : "";
}

std::string CountEntries(const std::string& path) {
  DIR* directory = ::opendir(path.c_str());
  if (directory == nullptr) return "";
  int count = 0;
  while (const dirent* entry = ::readdir(directory)) count += entry->d_name[0] != '.' ? 1 : 0;
  ::closedir(directory);
  return std::to_string(count);
}

ProcessFacts Look(const std::string& name, int pid) {
  const std::string process = "/proc/" + std::to_string(pid);
  ProcessFacts facts{.name = name,
                     .pid = pid,
                     .status = ReadFields(process + "/status"),
                     .namespaces = {},
                     .descriptors = CountEntries(process + "/fd"),
                     .pss_kb = {}};
  for (const char* kind : {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"}) {
    facts.namespaces[kind] = ReadLink(process + "/ns/" + kind);
  }
  facts.pss_kb = FirstWord(ReadFields(process + "/smaps_rollup")["Pss"]);
  return facts;
}

std::string Field(const ProcessFacts& facts, const char* name) {
  const auto found = facts.status.find(name);
  return found == facts.status.end() ? "?" : found->second;
}

std::string OrUnknown(const std::string& text) { return text.empty() ? "?" : text; }

// The namespaces of a process that are not the ones this command is in.
std::string OwnNamespaces(const ProcessFacts& facts) {
  std::string own;
  for (const auto& [kind, link] : facts.namespaces) {
    if (link.empty()) return "?";
    if (link != ReadLink("/proc/self/ns/" + kind)) own += (own.empty() ? "" : ",") + kind;
  }
  return own.empty() ? "none" : own;
}

void PrintTable(control::VmReport::Reader report, const std::vector<ProcessFacts>& processes) {
  std::printf("name     %s\nstate    %s\nvcpus    %u\nmemory   %llu MiB\n\n", report.getName().cStr(),
              report.getState().cStr(), report.getVcpuCount(),
              static_cast<unsigned long long>(report.getMemoryBytes() >> 20));
  std::printf("%-12s %8s %10s %8s %8s %8s %7s %4s %17s %4s  %s\n", "PROCESS", "PID", "UID", "THREADS", "RSS-KB",
              "PSS-KB", "SECCOMP", "NNP", "CAPABILITIES", "FDS", "OWN NAMESPACES");
  for (const ProcessFacts& facts : processes) {
    std::printf("%-12s %8d %10s %8s %8s %8s %7s %4s %17s %4s  %s\n", facts.name.c_str(), facts.pid,
                FirstWord(Field(facts, "Uid")).c_str(), Field(facts, "Threads").c_str(),
                FirstWord(Field(facts, "VmRSS")).c_str(), OrUnknown(facts.pss_kb).c_str(),
                Field(facts, "Seccomp").c_str(), Field(facts, "NoNewPrivs").c_str(), Field(facts, "CapEff").c_str(),
                OrUnknown(facts.descriptors).c_str(), OwnNamespaces(facts).c_str());
  }
}

void PrintJson(control::VmReport::Reader report, const std::vector<ProcessFacts>& processes) {
  nlohmann::json out{{"name", report.getName().cStr()},     {"state", report.getState().cStr()},
                     {"vcpus", report.getVcpuCount()},      {"memory_bytes", report.getMemoryBytes()},
                     {"broker_pid", report.getBrokerPid()}, {"processes", nlohmann::json::array()}};
  for (const ProcessFacts& facts : processes) {
    nlohmann::json process{{"name", facts.name}, {"pid", facts.pid}, {"namespaces", facts.namespaces}};
    for (const char* field :
         {"Uid", "Threads", "VmRSS", "Seccomp", "Seccomp_filters", "NoNewPrivs", "CapEff", "CapBnd"}) {
      process[field] = Field(facts, field);
    }
    if (!facts.descriptors.empty()) process["descriptors"] = std::stoi(facts.descriptors);
    if (!facts.pss_kb.empty()) process["pss_kb"] = std::stoll(facts.pss_kb);
    out["processes"].push_back(process);
  }
  std::printf("%s\n", out.dump(2).c_str());
}

}  // namespace

int InspectCommand(const VmCommandOptions& options) {
  auto io = kj::setupAsyncIo();
  VmConnection connection(io, options.name);
  auto answer = AskForReport(io, connection.control());
  KJ_IF_MAYBE (response, answer) {
    const auto report = response->getReport();
    std::vector<ProcessFacts> processes{Look("broker", report.getBrokerPid())};
    for (auto process : report.getProcesses()) processes.push_back(Look(process.getName().cStr(), process.getPid()));
    if (options.json) {
      PrintJson(report, processes);
    } else {
      PrintTable(report, processes);
    }
    return 0;
  }
  throw FatalError("VM '" + options.name + "': its broker (process " + std::to_string(connection.broker_pid()) +
                   ") does not answer; end the VM with `bulkhead kill " + options.name + "`");
}

}  // namespace bulkhead::launcher
