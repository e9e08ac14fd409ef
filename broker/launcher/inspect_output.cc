// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/inspect_output.h"

#include <cap-ng.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "ipc/syscall_policy.h"

namespace bulkhead::launcher {
namespace {

constexpr const char* kUnseen = "-";
constexpr size_t kLineWidth = 100;
constexpr size_t kLabelWidth = 16;

std::string Size(uint64_t bytes) {
  if (bytes == 0) return "0";
  if (bytes % (uint64_t{1} << 30) == 0) return fmt::format("{}G", bytes >> 30);
  if (bytes % (uint64_t{1} << 20) == 0) return fmt::format("{}M", bytes >> 20);
  return fmt::format("{}K", bytes >> 10);
}

std::vector<std::string> CapabilityNames(uint64_t set) {
  std::vector<std::string> names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((set >> bit & 1) == 0) continue;
    const char* name = ::capng_capability_to_name(bit);
    names.push_back(name != nullptr ? name : std::to_string(bit));
  }
  return names;
}

bool EveryThread(const ProcessFacts& facts, bool (*holds)(const ThreadFacts&)) {
  return !facts.threads.empty() && std::all_of(facts.threads.begin(), facts.threads.end(), holds);
}

std::map<FdKind, unsigned> CountByKind(const std::vector<Descriptor>& descriptors) {
  std::map<FdKind, unsigned> counts;
  for (const Descriptor& fd : descriptors) ++counts[fd.kind];
  return counts;
}

size_t OwnNamespaces(const std::vector<NamespaceFact>& namespaces) {
  return static_cast<size_t>(
      std::count_if(namespaces.begin(), namespaces.end(), [](const NamespaceFact& fact) { return fact.own; }));
}

std::string FilterMark(const ProcessFacts& facts) {
  if (!EveryThread(facts, [](const ThreadFacts& thread) { return thread.seccomp_mode == 2; })) return "no";
  return "yes";
}

// "20": how many system calls the filter lets through.
std::string CallCount(const ProcessFacts& facts, const FilterReading& filter) {
  if (facts.threads.empty() || facts.threads.front().seccomp_mode != 2) return "all";
  return filter.ok() ? std::to_string(WalkSeccompProgram(*filter).numbers.size()) : kUnseen;
}

std::string Row(const ProcessFacts& facts, const FilterReading& filter) {
  if (!facts.exists) return fmt::format("{:<12} {:>8}\n", facts.name, "not running");
  const auto capabilities = CapabilityNames(HeldCapabilities(facts)).size();
  return fmt::format("{:<12} {:>8} {:>10} {:>7} {:>4} {:>3} {:>6} {:>5} {:>4} {:>9} {:>7} {:>2}\n", facts.name,
                     facts.pid, facts.uids[1], facts.threads.size(), capabilities,
                     EveryThread(facts, [](const ThreadFacts& thread) { return thread.no_new_privs; }) ? "yes" : "no",
                     FilterMark(facts), CallCount(facts, filter),
                     facts.descriptors ? std::to_string(facts.descriptors->size()) : kUnseen,
                     facts.memory ? Size(GuestMemoryBytes(*facts.memory)) : kUnseen,
                     facts.memory ? std::to_string(facts.memory->own_pss_kb) : kUnseen,
                     facts.namespaces ? std::to_string(OwnNamespaces(*facts.namespaces)) : kUnseen);
}

// "  descriptors     2 eventfd, 1 pipe", wrapped between words.
void AddParagraph(std::string& out, const char* label, const std::vector<std::string>& words,
                  const char* separator = " ") {
  std::string line = fmt::format("  {:<{}}", label, kLabelWidth - 2);
  bool first = true;
  for (const std::string& word : words) {
    const std::string next = first ? word : separator + word;
    if (!first && line.size() + next.size() > kLineWidth) {
      const std::string_view mark = std::string_view(separator) == ", " ? "," : "";
      out += line + std::string(mark) + "\n";
      line = std::string(kLabelWidth, ' ') + word;
    } else {
      line += next;
    }
    first = false;
  }
  out += line + "\n";
}

std::vector<std::string> DescribeNamespaces(const std::vector<NamespaceFact>& namespaces) {
  std::vector<std::string> words;
  for (const NamespaceFact& fact : namespaces) {
    if (fact.own) words.push_back(fact.kind);
  }
  if (words.empty()) words = {"none of its own"};
  return words;
}

std::vector<std::string> DescribeDescriptors(const std::vector<Descriptor>& descriptors) {
  std::vector<std::string> words;
  for (const auto& [kind, count] : CountByKind(descriptors)) {
    words.push_back(fmt::format("{} {}", count, FdKindName(kind)));
  }
  return words;
}

// Where descriptors lead out of the VM.
std::vector<std::string> OutsideTargets(const std::vector<Descriptor>& descriptors) {
  std::set<std::string> targets;
  for (const Descriptor& fd : descriptors) {
    const bool outside = fd.kind == FdKind::kFile || fd.kind == FdKind::kBlockDevice || fd.kind == FdKind::kTerminal ||
                         fd.kind == FdKind::kDirectory || fd.kind == FdKind::kKvm;
    if (outside) targets.insert(fd.target);
  }
  return {targets.begin(), targets.end()};
}

std::vector<std::string> DescribeFilter(const ProcessFacts& facts, const FilterReading& filter) {
  if (facts.threads.empty() || facts.threads.front().seccomp_mode != 2) return {"all: no filter"};
  if (NeedsRoot(filter)) return {kUnseen};
  if (!filter.ok()) return {filter.error().message};
  const AllowedCalls allowed = WalkSeccompProgram(*filter);
  std::vector<std::string> words;
  for (const int number : allowed.numbers) words.push_back(SyscallName(number));
  std::sort(words.begin(), words.end());
  words.insert(words.begin(), fmt::format("{} ({} instructions):", words.size(), allowed.instructions));
  if (allowed.other_tables) words.emplace_back("and calls by i386 or x32 numbers");
  return words;
}

std::vector<std::string> DescribeCgroup(const CgroupFacts& cgroup) {
  if (cgroup.path.empty()) return {kUnseen};
  std::vector<std::string> words{cgroup.path};
  for (const auto& [limit, value] : cgroup.limits) {
    if (value != "max" && !value.empty()) words.push_back(fmt::format("{}={}", limit, value));
  }
  if (words.size() == 1) words.emplace_back("(no limit set)");
  return words;
}

std::vector<std::string> DescribeLimits(const ProcessFacts& facts) {
  std::vector<std::string> words;
  for (const auto& [name, label] : {std::pair{"Max open files", "files"},
                                    {"Max file size", "file size"},
                                    {"Max core file size", "core"},
                                    {"Max locked memory", "locked memory"},
                                    {"Max address space", "address space"},
                                    {"Max data size", "data"},
                                    {"Max processes", "processes"}}) {
    const auto found = facts.hard_limits.find(name);
    if (found != facts.hard_limits.end() && found->second != "unlimited") {
      words.push_back(fmt::format("{} {}", label, found->second));
    }
  }
  return words;
}

std::vector<std::string> DescribeRoot(const RootFacts& root) {
  if (!root.only_mount) return {"the host's"};
  std::vector<std::string> words{"its own,"};
  if (root.empty) words.push_back(*root.empty ? "empty," : "not empty,");
  words.push_back(root.read_only ? "read-only" : "writable");
  return words;
}

std::vector<std::string> DescribeTraffic(const TrafficFacts& traffic) {
  std::vector<std::string> words{fmt::format("{} packets", traffic.packets), fmt::format("{} bytes", traffic.bytes),
                                 fmt::format("{} dropped", traffic.dropped)};
  if (traffic.refused != 0) words.push_back(fmt::format("{} of these refused", traffic.refused));
  return words;
}

// Of a network interface, by its process.
void AddInterface(std::string& out, const std::optional<InterfaceFacts>& facts) {
  AddParagraph(out, "link", {facts ? LinkName(facts->link) : "no answer"});
  if (!facts) return;
  const std::vector<std::string> uncounted{"counted by the kernel, at the tap"};
  AddParagraph(out, "received", facts->received ? DescribeTraffic(*facts->received) : uncounted, ", ");
  AddParagraph(out, "sent", facts->sent ? DescribeTraffic(*facts->sent) : uncounted, ", ");
}

std::string Paragraphs(const ProcessFacts& facts, const FilterReading& filter, const Interfaces& interfaces) {
  if (!facts.exists) return "";
  std::string out = "\n" + facts.name + "\n";
  const std::vector<std::string> unseen{kUnseen};
  AddParagraph(out, "namespaces", facts.namespaces ? DescribeNamespaces(*facts.namespaces) : unseen);
  AddParagraph(out, "root", DescribeRoot(facts.root));
  if (HeldCapabilities(facts) != 0) AddParagraph(out, "capabilities", CapabilityNames(HeldCapabilities(facts)));
  AddParagraph(out, "system calls", DescribeFilter(facts, filter));
  AddParagraph(out, "descriptors", facts.descriptors ? DescribeDescriptors(*facts.descriptors) : unseen, ", ");
  if (facts.descriptors) {
    const auto outside = OutsideTargets(*facts.descriptors);
    if (!outside.empty()) AddParagraph(out, "outside", outside, ", ");
  }
  AddParagraph(out, "limits", DescribeLimits(facts), ", ");
  AddParagraph(out, "cgroup", DescribeCgroup(facts.cgroup));
  if (const auto interface = interfaces.find(facts.name); interface != interfaces.end()) {
    AddInterface(out, interface->second);
  }
  return out;
}

bool AnythingUnseen(const Inspection& inspection) {
  const bool filters = std::any_of(inspection.filters.begin(), inspection.filters.end(), NeedsRoot);
  const auto& processes = inspection.vm.processes;
  return filters || std::any_of(processes.begin(), processes.end(), [](const ProcessFacts& facts) {
           return facts.exists && (!facts.descriptors || !facts.memory || !facts.namespaces || !facts.root.empty);
         });
}

nlohmann::json Json(const ThreadFacts& thread) {
  return {{"tid", thread.tid},
          {"name", thread.name},
          {"capabilities",
           {{"permitted", thread.permitted},
            {"effective", thread.effective},
            {"inheritable", thread.inheritable},
            {"bounding", thread.bounding},
            {"ambient", thread.ambient}}},
          {"no_new_privs", thread.no_new_privs},
          {"seccomp_mode", thread.seccomp_mode},
          {"seccomp_filters", thread.seccomp_filters}};
}

nlohmann::json Json(const FilterReading& filter) {
  if (!filter.ok()) return nullptr;
  const AllowedCalls allowed = WalkSeccompProgram(*filter);
  nlohmann::json names = nlohmann::json::array();
  for (const int number : allowed.numbers) names.push_back(SyscallName(number));
  return {{"allowed", std::move(names)},
          {"allows_other_tables", allowed.other_tables},
          {"instructions", allowed.instructions}};
}

nlohmann::json Json(const std::vector<Descriptor>& descriptors) {
  nlohmann::json counts = nlohmann::json::object();
  for (const auto& [kind, count] : CountByKind(descriptors)) counts[FdKindName(kind)] = count;
  nlohmann::json all = nlohmann::json::array();
  for (const Descriptor& fd : descriptors) {
    all.push_back({{"number", fd.number}, {"kind", FdKindName(fd.kind)}, {"target", fd.target}});
  }
  return {{"count", descriptors.size()}, {"by_kind", std::move(counts)}, {"all", std::move(all)}};
}

// Null: the kernel counts.
nlohmann::json Json(const std::optional<TrafficFacts>& traffic) {
  if (!traffic) return nullptr;
  return {{"packets", traffic->packets},
          {"bytes", traffic->bytes},
          {"dropped", traffic->dropped},
          {"refused", traffic->refused}};
}

// Null: its process does not answer.
nlohmann::json Json(const std::optional<InterfaceFacts>& facts) {
  if (!facts) return nullptr;
  return {{"link", LinkName(facts->link)}, {"received", Json(facts->received)}, {"sent", Json(facts->sent)}};
}

nlohmann::json Json(const MemoryFacts& memory) {
  nlohmann::json guest = nlohmann::json::array();
  for (const Mapping& mapping : memory.guest_memory) {
    guest.push_back({{"name", mapping.name}, {"bytes", mapping.size_bytes}, {"rights", mapping.rights}});
  }
  return {{"guest_bytes", GuestMemoryBytes(memory)},
          {"guest_mappings", std::move(guest)},
          {"writable_executable_mappings", memory.writable_executable.size()},
          {"own_pss_kb", memory.own_pss_kb}};
}

template <typename T>
nlohmann::json OrNull(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

nlohmann::json Json(const ProcessFacts& facts, const FilterReading& filter) {
  nlohmann::json out{{"name", facts.name},
                     {"pid", facts.pid},
                     {"running", facts.exists},
                     {"uid", facts.uids[1]},
                     {"gid", facts.gids[1]},
                     {"groups", facts.groups},
                     {"executable", OrNull(facts.executable)},
                     {"capabilities", CapabilityNames(HeldCapabilities(facts))},
                     {"system_calls", Json(filter)},
                     {"root",
                      {{"only_mount", facts.root.only_mount},
                       {"read_only", facts.root.read_only},
                       {"empty", OrNull(facts.root.empty)}}},
                     {"limits", facts.hard_limits},
                     {"cgroup", {{"path", facts.cgroup.path}, {"limits", facts.cgroup.limits}}},
                     {"namespaces", nullptr},
                     {"descriptors", nullptr},
                     {"memory", nullptr},
                     {"threads", nlohmann::json::array()}};
  for (const ThreadFacts& thread : facts.threads) out["threads"].push_back(Json(thread));
  if (facts.namespaces) {
    for (const NamespaceFact& fact : *facts.namespaces) {
      out["namespaces"][fact.kind] = {{"id", fact.id}, {"own", fact.own}};
    }
  }
  if (facts.descriptors) out["descriptors"] = Json(*facts.descriptors);
  if (facts.memory) out["memory"] = Json(*facts.memory);
  return out;
}

}  // namespace

bool NeedsRoot(const FilterReading& reading) {
  return !reading.ok() && (reading.error().code == EPERM || reading.error().code == EACCES);
}

std::string FormatTable(const Inspection& inspection) {
  std::string out = fmt::format("name     {}\nstate    {}\nvcpus    {}\nmemory   {}\n\n", inspection.vm.name,
                                inspection.state, inspection.vm.vcpus, Size(inspection.vm.memory_bytes));
  out += fmt::format("{:<12} {:>8} {:>10} {:>7} {:>4} {:>3} {:>6} {:>5} {:>4} {:>9} {:>7} {:>2}\n", "PROCESS", "PID",
                     "UID", "THREADS", "CAPS", "NNP", "FILTER", "CALLS", "FDS", "GUEST-MEM", "OWN-KB", "NS");
  const auto& processes = inspection.vm.processes;
  for (size_t i = 0; i < processes.size(); ++i) out += Row(processes[i], inspection.filters[i]);
  for (size_t i = 0; i < processes.size(); ++i) {
    out += Paragraphs(processes[i], inspection.filters[i], inspection.interfaces);
  }
  if (AnythingUnseen(inspection)) out += "\n- : this user may not see it; root sees all\n";
  return out;
}

nlohmann::json FormatJson(const Inspection& inspection) {
  nlohmann::json out{{"name", inspection.vm.name},
                     {"state", inspection.state},
                     {"vcpus", inspection.vm.vcpus},
                     {"memory_bytes", inspection.vm.memory_bytes},
                     {"broker_pid", inspection.vm.processes.front().pid},
                     {"processes", nlohmann::json::array()}};
  for (size_t i = 0; i < inspection.vm.processes.size(); ++i) {
    const ProcessFacts& process = inspection.vm.processes[i];
    out["processes"].push_back(Json(process, inspection.filters[i]));
    const auto interface = inspection.interfaces.find(process.name);
    if (interface != inspection.interfaces.end()) out["processes"].back()["interface"] = Json(interface->second);
  }
  return out;
}

}  // namespace bulkhead::launcher
