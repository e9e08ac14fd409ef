// SPDX-License-Identifier: Apache-2.0
#include "broker/cgroup_place.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>

#include "ipc/cgroup_mount.h"

namespace bulkhead::broker {
namespace {

constexpr const char* kDirectory = "bulkhead";
constexpr std::array kControllers = {"memory", "pids", "cpu", "io"};
constexpr size_t kMaxFileBytes = 65536;

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::set<std::string> Words(const std::string& text) {
  std::istringstream words(text);
  std::set<std::string> all;
  for (std::string word; words >> word;) all.insert(word);
  return all;
}

OwnFd OpenDirectory(int at, const std::string& path) {
  return OwnFd(::openat(at, path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

bool LimitsMemoryAndPids(const std::set<std::string>& controllers) {
  return controllers.contains("memory") && controllers.contains("pids");
}

Error Missing(const std::string& why) { return {ENOTSUP, why}; }

// One at a time, since a write that names one which cannot be enabled enables none.
std::set<std::string> EnableControllers(int directory) {
  const std::set<std::string> available = Words(ReadFileAt(directory, "cgroup.controllers"));
  std::set<std::string> enabled = Words(ReadFileAt(directory, "cgroup.subtree_control"));
  for (const std::string controller : kControllers) {
    if (available.contains(controller) && !enabled.contains(controller) &&
        WriteFileAt(directory, "cgroup.subtree_control", "+" + controller).ok()) {
      enabled.insert(controller);
    }
  }
  return enabled;
}

Result<CgroupPlace> MakePlace(const std::string& parent_path) {
  const OwnFd parent = OpenDirectory(AT_FDCWD, parent_path);
  if (!parent.valid()) return Missing("no cgroup limits: " + ErrnoError(errno, parent_path).message);
  if (!LimitsMemoryAndPids(Words(ReadFileAt(parent.get(), "cgroup.controllers")))) {
    return Missing("no cgroup limits: this host has no cgroup v2 with the memory, pids and cpu controllers");
  }
  if (!LimitsMemoryAndPids(EnableControllers(parent.get()))) {
    return Missing("no cgroup limits: the controllers cannot be enabled in " + parent_path +
                   ", which is read-only or has processes of its own");
  }
  // Closed to other users: who can open a VM's directory there can lock it and so hinder its removal.
  if (::mkdirat(parent.get(), kDirectory, 0700) != 0 && errno != EEXIST) {
    return Missing("no cgroup limits: " + ErrnoError(errno, "make " + parent_path + "/" + kDirectory).message);
  }
  CgroupPlace place{.directory = OpenDirectory(parent.get(), kDirectory), .controllers = {}};
  if (!place.directory.valid()) {
    return Missing("no cgroup limits: " + ErrnoError(errno, "open " + parent_path + "/" + kDirectory).message);
  }
  place.controllers = EnableControllers(place.directory.get());
  if (!LimitsMemoryAndPids(place.controllers)) {
    return Missing("no cgroup limits: the controllers cannot be enabled in " + parent_path + "/" + kDirectory);
  }
  return place;
}

// cgroup-v2.rst, "Delegation": who may write these three may make cgroups below and put own processes there.
bool IsDelegated(const std::string& directory) {
  for (const char* name : {"", "/cgroup.procs", "/cgroup.subtree_control"}) {
    if (::access((directory + name).c_str(), W_OK) != 0) return false;
  }
  return true;
}

}  // namespace

CgroupTree ReadCgroupTree() {
  return {.mount = FindCgroupMount(ReadAll("/proc/self/mountinfo")),
          .own_path = FindCgroupPath(ReadAll("/proc/self/cgroup")),
          .is_root = ::geteuid() == 0};
}

Result<CgroupPlace> FindCgroupPlace(const CgroupTree& tree) {
  if (tree.mount.empty()) return Missing("no cgroup limits: cgroup v2 is not mounted on this host");
  if (tree.is_root) return MakePlace(tree.mount);
  // The own cgroup has processes, at least this one, and so can have none below it that are limited.
  std::string path = tree.own_path;
  while (!path.empty() && path.find("/..") == std::string::npos) {
    path.erase(path.rfind('/'));
    if (!IsDelegated(tree.mount + path)) continue;
    auto place = MakePlace(tree.mount + path);
    if (place.ok()) return place;
  }
  return Missing(
      "no cgroup limits: no cgroup with the memory, pids and cpu controllers was delegated to this user; under systemd "
      "start the VM with `systemd-run --user --scope`");
}

std::string ReadFileAt(int directory, const std::string& name) {
  const OwnFd file(::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  std::string text(kMaxFileBytes, '\0');
  const ssize_t count = file.valid() ? ::read(file.get(), text.data(), text.size()) : -1;
  text.resize(count > 0 ? static_cast<size_t>(count) : 0);
  return text;
}

Result<void> WriteFileAt(int directory, const std::string& name, const std::string& text) {
  const OwnFd file(::openat(directory, name.c_str(), O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!file.valid() || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return ErrnoError(errno, "set " + name);
  }
  return {};
}

}  // namespace bulkhead::broker
