// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts_cgroup.h"

#include <fstream>
#include <sstream>

namespace bulkhead::launcher {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The line of version 2, "0::/PATH" (cgroups(7)).
std::string FindPath(const std::string& cgroups) {
  std::istringstream lines(cgroups);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("0::")) return line.substr(3);
  }
  return "";
}

// Several lines (io.max has one per device) become one.
std::string OneLine(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  for (char& c : text) {
    if (c == '\n') c = ';';
  }
  return text;
}

}  // namespace

std::string FindCgroupMount(const std::string& mountinfo) {
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    // proc_pid_mountinfo(5): id, parent, device, root, mount point
    std::istringstream fields(line);
    std::string skipped;
    std::string mount;
    fields >> skipped >> skipped >> skipped >> skipped >> mount;
    return mount;
  }
  return "";
}

CgroupFacts ReadCgroupFacts(pid_t pid) {
  CgroupFacts facts{.path = FindPath(ReadAll("/proc/" + std::to_string(pid) + "/cgroup")), .limits = {}};
  const std::string mount = FindCgroupMount(ReadAll("/proc/self/mountinfo"));
  if (facts.path.empty() || mount.empty()) return facts;
  for (const char* limit : kCgroupLimits) {
    std::ifstream file(mount + facts.path + "/" + limit);
    std::ostringstream text;
    text << file.rdbuf();
    if (file) facts.limits[limit] = OneLine(text.str());
  }
  return facts;
}

}  // namespace bulkhead::launcher
