// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts_cgroup.h"

#include <fstream>
#include <sstream>

#include "ipc/cgroup_mount.h"

namespace bulkhead::launcher {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
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

CgroupFacts ReadCgroupFacts(pid_t pid) {
  CgroupFacts facts{.path = FindCgroupPath(ReadAll("/proc/" + std::to_string(pid) + "/cgroup")), .limits = {}};
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
