// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts_memory.h"

#include <sys/sysmacros.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>

#include "broker/launcher/process_facts_descriptors.h"

namespace bulkhead::launcher {
namespace {

// "7f9f0d400000-7f9f15400000 rw-s 00000000 00:01 13908      /memfd:guest-web1 (deleted)"; nothing for other lines.
std::optional<Mapping> ParseHeader(const std::string& line) {
  uint64_t start = 0;
  uint64_t end = 0;
  char rights[5] = {};
  unsigned major = 0;
  unsigned minor = 0;
  int name = 0;
  const int fields = std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %*x %x:%x %*u %n", &start, &end, rights,
                                 &major, &minor, &name);
  if (fields != 5 || end < start) return std::nullopt;
  Mapping mapping{.size_bytes = end - start, .rights = rights, .name = line.substr(static_cast<size_t>(name))};
  constexpr std::string_view kPrefix = "/memfd:";
  constexpr std::string_view kSuffix = " (deleted)";
  mapping.memfd = mapping.name.starts_with(kPrefix) && ::makedev(major, minor) == MemfdDevice();
  if (mapping.memfd) {
    mapping.name.erase(0, 1);
    if (mapping.name.ends_with(kSuffix)) mapping.name.erase(mapping.name.size() - kSuffix.size());
  }
  return mapping;
}

}  // namespace

uint64_t GuestMemoryBytes(const MemoryFacts& memory) {
  uint64_t bytes = 0;
  for (const Mapping& mapping : memory.guest_memory) bytes += mapping.size_bytes;
  return bytes;
}

MemoryFacts ParseMemoryFacts(std::istream& smaps) {
  MemoryFacts facts;
  bool in_guest_memory = false;
  for (std::string line; std::getline(smaps, line);) {
    uint64_t kb = 0;
    if (std::sscanf(line.c_str(), "Pss: %" SCNu64 " kB", &kb) == 1) {
      if (!in_guest_memory) facts.own_pss_kb += kb;
      continue;
    }
    const std::optional<Mapping> mapping = ParseHeader(line);
    if (!mapping) continue;
    in_guest_memory = mapping->memfd && mapping->name.starts_with("memfd:guest-");
    if (in_guest_memory) facts.guest_memory.push_back(*mapping);
    if (mapping->memfd && mapping->name.starts_with("memfd:exits-")) facts.exit_rings.push_back(*mapping);
    if (mapping->rights[1] == 'w' && mapping->rights[2] == 'x') facts.writable_executable.push_back(*mapping);
  }
  return facts;
}

std::optional<MemoryFacts> ReadMemoryFacts(pid_t pid) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  // Who may not look can open it all the same, and reads nothing.
  if (!smaps || smaps.peek() == std::ifstream::traits_type::eof()) return std::nullopt;
  return ParseMemoryFacts(smaps);
}

}  // namespace bulkhead::launcher
