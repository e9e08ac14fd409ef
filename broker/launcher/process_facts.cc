// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;
using Fields = std::map<std::string, std::string>;

std::optional<std::string> ReadLink(const std::string& path) {
  std::array<char, PATH_MAX> target;
  const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
  if (length <= 0) return std::nullopt;
  return std::string(target.data(), static_cast<size_t>(length));
}

// The "Name:<tab>value" lines of a status file.
Fields ReadStatus(const std::string& path) {
  Fields fields;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    fields[line.substr(0, colon)] = value == std::string::npos ? "" : line.substr(value);
  }
  return fields;
}

uint64_t Number(const Fields& fields, const char* name, int base) {
  const auto found = fields.find(name);
  return found == fields.end() ? 0 : std::strtoull(found->second.c_str(), nullptr, base);
}

template <typename Id>
std::vector<Id> Ids(const Fields& fields, const char* name) {
  std::vector<Id> ids;
  const auto found = fields.find(name);
  if (found == fields.end()) return ids;
  std::istringstream words(found->second);
  for (Id id; words >> id;) ids.push_back(id);
  return ids;
}

template <typename Id>
std::array<Id, 4> FourIds(const Fields& fields, const char* name) {
  std::array<Id, 4> four{};
  const auto ids = Ids<Id>(fields, name);
  std::copy_n(ids.begin(), std::min(ids.size(), four.size()), four.begin());
  return four;
}

// A thread can give itself any name.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return text;
}

ThreadFacts ReadThread(const std::string& directory) {
  const Fields status = ReadStatus(directory + "/status");
  const auto name = status.find("Name");
  return {.tid = static_cast<pid_t>(Number(status, "Pid", 10)),
          .name = name == status.end() ? "" : Printable(name->second),
          .permitted = Number(status, "CapPrm", 16),
          .effective = Number(status, "CapEff", 16),
          .inheritable = Number(status, "CapInh", 16),
          .bounding = Number(status, "CapBnd", 16),
          .ambient = Number(status, "CapAmb", 16),
          .no_new_privs = Number(status, "NoNewPrivs", 10) == 1,
          .seccomp_mode = static_cast<unsigned>(Number(status, "Seccomp", 10)),
          .seccomp_filters = static_cast<unsigned>(Number(status, "Seccomp_filters", 10))};
}

std::vector<ThreadFacts> ReadThreads(const std::string& process) {
  std::vector<ThreadFacts> threads;
  std::error_code ended;
  fs::directory_iterator entry(process + "/task", ended);
  while (!ended && entry != fs::directory_iterator()) {
    const ThreadFacts thread = ReadThread(entry->path());
    if (thread.tid != 0) threads.push_back(thread);  // else it ended meanwhile
    entry.increment(ended);
  }
  std::sort(threads.begin(), threads.end(), [](const auto& a, const auto& b) { return a.tid < b.tid; });
  return threads;
}

// A process's children are those of its threads.
std::vector<pid_t> ReadChildren(const std::string& process) {
  std::vector<pid_t> children;
  std::error_code ended;
  fs::directory_iterator entry(process + "/task", ended);
  while (!ended && entry != fs::directory_iterator()) {
    std::ifstream list(entry->path() / "children");
    for (pid_t child; list >> child;) children.push_back(child);
    entry.increment(ended);
  }
  return children;
}

std::optional<std::vector<NamespaceFact>> ReadNamespaces(const std::string& process) {
  std::vector<NamespaceFact> namespaces;
  for (const std::string kind : kNamespaceKinds) {
    const auto id = ReadLink(process + "/ns/" + kind);
    if (!id) return std::nullopt;
    namespaces.push_back({.kind = kind, .id = *id, .own = id != ReadLink("/proc/self/ns/" + kind)});
  }
  return namespaces;
}

// Whether the options field of a mountinfo line, "ro,nosuid,nodev", has "ro".
bool SaysReadOnly(const std::string& options) { return options == "ro" || options.starts_with("ro,"); }

RootFacts ReadRoot(const std::string& process) {
  RootFacts root;
  std::ifstream mounts(process + "/mountinfo");
  int count = 0;
  for (std::string line; std::getline(mounts, line); ++count) {
    std::istringstream fields(line);
    std::string skipped;
    std::string point;
    std::string options;
    fields >> skipped >> skipped >> skipped >> skipped >> point >> options;
    if (point == "/") root.read_only = SaysReadOnly(options);
  }
  root.only_mount = count == 1;
  std::error_code error;
  const fs::directory_iterator entries(process + "/root/", error);
  if (!error) root.empty = entries == fs::directory_iterator();
  return root;
}

// "Max core file size        0                    0                    bytes": names may have several words, values
// never, and two blanks or more end a name.
Fields ReadHardLimits(const std::string& process) {
  Fields limits;
  std::ifstream file(process + "/limits");
  for (std::string line; std::getline(file, line);) {
    const size_t name_end = line.find("  ");
    if (name_end == std::string::npos || !line.starts_with("Max ")) continue;
    std::istringstream values(line.substr(name_end));
    std::string soft;
    std::string hard;
    if (values >> soft >> hard) limits[line.substr(0, name_end)] = hard;
  }
  return limits;
}

}  // namespace

ProcessFacts ReadProcessFacts(const std::string& name, pid_t pid) {
  const std::string process = "/proc/" + std::to_string(pid);
  const Fields status = ReadStatus(process + "/status");
  ProcessFacts facts;
  facts.name = name;
  facts.pid = pid;
  facts.parent = static_cast<pid_t>(Number(status, "PPid", 10));
  facts.children = ReadChildren(process);
  const auto state = status.find("State");
  facts.exists = state != status.end() && !state->second.starts_with('Z');
  facts.uids = FourIds<uid_t>(status, "Uid");
  facts.gids = FourIds<gid_t>(status, "Gid");
  facts.groups = Ids<gid_t>(status, "Groups");
  facts.threads = ReadThreads(process);
  facts.executable = ReadLink(process + "/exe");
  facts.namespaces = ReadNamespaces(process);
  facts.root = ReadRoot(process);
  facts.hard_limits = ReadHardLimits(process);
  facts.descriptors = ReadDescriptors(pid);
  facts.memory = ReadMemoryFacts(pid);
  facts.cgroup = ReadCgroupFacts(pid);
  return facts;
}

uint64_t HeldCapabilities(const ProcessFacts& facts) {
  uint64_t all = 0;
  for (const ThreadFacts& thread : facts.threads) {
    all |= thread.permitted | thread.effective | thread.inheritable | thread.ambient;
  }
  return all;
}

}  // namespace bulkhead::launcher
