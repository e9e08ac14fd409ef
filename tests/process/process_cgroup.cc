// SPDX-License-Identifier: Apache-2.0
#include "tests/process/process_cgroup.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

#include "ipc/cgroup_mount.h"
#include "tests/process/harness.h"

namespace bulkhead::test {

std::optional<ProcessCgroup> ProcessCgroup::Of(pid_t pid) {
  const std::string mount = FindCgroupMount(ReadFile("/proc/self/mountinfo"));
  const std::string path = FindCgroupPath(ReadFile("/proc/" + std::to_string(pid) + "/cgroup"));
  if (mount.empty() || path.find("/bulkhead/") == std::string::npos) return std::nullopt;
  ProcessCgroup found(mount + path);
  const std::string files[] = {found.path_ + "/cgroup.freeze", found.path_ + "/memory.max"};
  for (const std::string& file : files) {
    if (::access(file.c_str(), W_OK) != 0) return std::nullopt;
  }
  return found;
}

bool ProcessCgroup::Hold() const {
  return Write("cgroup.freeze", "1") && Eventually([this] { return Count("cgroup.events", "frozen") == 1; });
}

void ProcessCgroup::LetGo() const { Write("cgroup.freeze", "0"); }

uint64_t ProcessCgroup::RunOutOfMemory() const {
  const uint64_t before = Count("memory.events", "oom_kill");
  const std::string limit = ReadFile(path_ + "/memory.max");
  Write("memory.max", "0");
  Write("memory.max", limit);
  return Count("memory.events", "oom_kill") - before;
}

bool ProcessCgroup::Write(const char* file, const std::string& value) const {
  std::ofstream out(path_ + "/" + file);
  out << value << std::flush;
  return out.good();
}

uint64_t ProcessCgroup::Count(const char* file, const std::string& word) const {
  std::istringstream words(ReadFile(path_ + "/" + file));
  std::string name;
  for (uint64_t value = 0; words >> name >> value;) {
    if (name == word) return value;
  }
  return 0;
}

}  // namespace bulkhead::test
