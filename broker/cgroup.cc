// SPDX-License-Identifier: Apache-2.0
#include "broker/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

namespace bulkhead::broker {
namespace {

constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr int kMakeTries = 100;
constexpr int kRemoveTries = 500;
constexpr auto kPause = std::chrono::milliseconds(2);

// Of the calls that wait, futex is the one that the broker's filter lets through.
void Pause() {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable().wait_for(lock, kPause);
}

std::vector<std::string> Subdirectories(int directory) {
  const int copy = ::openat(directory, ".", kDirectoryFlags);
  DIR* const stream = copy >= 0 ? ::fdopendir(copy) : nullptr;
  if (stream == nullptr) {
    if (copy >= 0) ::close(copy);
    return {};
  }
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(stream)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  ::closedir(stream);
  return names;
}

bool IsAt(int directory, int parent, const std::string& name) {
  struct stat opened {
  }, named{};
  return ::fstat(directory, &opened) == 0 && ::fstatat(parent, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

// Whoever sweeps removes what it finds unlocked, even what was made a moment ago: then again.
Result<OwnFd> MakeLocked(int parent, const std::string& name) {
  for (int i = 0; i < kMakeTries; ++i) {
    if (::mkdirat(parent, name.c_str(), 0755) != 0 && errno != EEXIST) break;
    OwnFd directory(::openat(parent, name.c_str(), kDirectoryFlags));
    if (directory.valid() && ::flock(directory.get(), LOCK_EX | LOCK_NB) == 0 && IsAt(directory.get(), parent, name)) {
      return directory;
    }
    Pause();
  }
  return ErrnoError(errno, "make a cgroup");
}

bool CanLimit(const std::set<std::string>& controllers, const CgroupLimit& limit) {
  return controllers.contains(limit.file.substr(0, limit.file.find('.')));
}

Result<void> SetLimits(int directory, const std::vector<CgroupLimit>& limits) {
  for (const CgroupLimit& limit : limits) {
    auto set = WriteFileAt(directory, limit.file, limit.value);
    if (!set.ok() && limit.required) return set;
  }
  return {};
}

// Whether a process may be born there, by trying: that is up to every cgroup on the way, and to namespaces.
Result<void> TryEntering(int leaf) {
  clone_args clone{};
  clone.flags = CLONE_INTO_CGROUP;
  clone.exit_signal = SIGCHLD;
  clone.cgroup = static_cast<uint64_t>(leaf);
  const auto pid = static_cast<pid_t>(::syscall(SYS_clone3, &clone, sizeof clone));
  if (pid < 0) return ErrnoError(errno, "start a process in a cgroup");
  if (pid == 0) ::_exit(0);
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return {};
}

}  // namespace

VmCgroup::VmCgroup(const CgroupPlan& plan, Result<CgroupPlace> place) {
  if (!place.ok()) {
    missing_ = place.error().message;
  } else {
    for (const CgroupLimit& limit : plan.limits) {
      if (limit.required && !CanLimit(place->controllers, limit)) {
        missing_ = "no cgroup limit " + limit.file + ": this controller is not available to this user";
      }
    }
    const bool has_cpu = place->controllers.contains("cpu");
    if (!plan.asked_for || missing_.empty()) {
      auto tree = Make(plan, *std::move(place));
      if (tree.ok()) {
        tree_ = std::make_unique<Tree>(*std::move(tree));
      } else {
        missing_ = "no cgroup limits: " + tree.error().message;
      }
    }
    if (missing_.empty() && !has_cpu) missing_ = "no cgroup weight: the cpu controller is not available to this user";
  }
  if (plan.asked_for && !tree_) throw FatalError("--limit: " + missing_);
}

VmCgroup::VmCgroup(const CgroupPlan& plan, const std::string& name, std::vector<OwnFd> kept) {
  if (kept.size() < 2) return;
  tree_ = std::make_unique<Tree>();
  tree_->parent = std::move(kept[0]);
  tree_->directory = std::move(kept[1]);
  if (kept.size() > 2) tree_->kill = std::move(kept[2]);
  tree_->name = name;
  for (const CgroupLeaf& leaf : plan.leaves) tree_->leaves.push_back(leaf.name);
}

VmCgroup::~VmCgroup() { Remove(); }

std::vector<int> VmCgroup::Share() const {
  if (!tree_) return {};
  std::vector<int> fds{tree_->parent.get(), tree_->directory.get()};
  if (tree_->kill.valid()) fds.push_back(tree_->kill.get());
  return fds;
}

void VmCgroup::Remove() {
  if (tree_) Remove(*tree_);
  tree_.reset();
}

OwnFd VmCgroup::OpenLeaf(const std::string& process) const {
  return tree_ ? OwnFd(::openat(tree_->directory.get(), process.c_str(), kDirectoryFlags)) : OwnFd();
}

Result<VmCgroup::Tree> VmCgroup::Make(const CgroupPlan& plan, CgroupPlace place) {
  Sweep(place.directory.get());
  Tree tree;
  tree.parent = std::move(place.directory);
  tree.name = plan.vm + "-" + std::to_string(::getpid());
  auto directory = MakeLocked(tree.parent.get(), tree.name);
  if (!directory.ok()) return directory.error();
  tree.directory = *std::move(directory);
  auto filled = Fill(tree, plan);
  if (filled.ok()) return tree;
  Remove(tree);
  return filled.error();
}

Result<void> VmCgroup::Fill(Tree& tree, const CgroupPlan& plan) {
  const int vm = tree.directory.get();
  tree.kill = OwnFd(::openat(vm, "cgroup.kill", O_WRONLY | O_CLOEXEC));
  if (auto set = SetLimits(vm, plan.limits); !set.ok()) return set;
  // What the parent has enabled shows here as available.
  for (const char* controller : {"memory", "pids"}) {
    auto enabled = WriteFileAt(vm, "cgroup.subtree_control", std::string("+") + controller);
    if (!enabled.ok()) return enabled;
  }
  for (const char* controller : {"cpu", "io"}) {
    (void)WriteFileAt(vm, "cgroup.subtree_control", std::string("+") + controller);
  }
  for (const CgroupLeaf& leaf : plan.leaves) {
    if (::mkdirat(vm, leaf.name.c_str(), 0755) != 0) return ErrnoError(errno, "make a cgroup for " + leaf.name);
    tree.leaves.push_back(leaf.name);
    const OwnFd directory(::openat(vm, leaf.name.c_str(), kDirectoryFlags));
    if (!directory.valid()) return ErrnoError(errno, "open the cgroup of " + leaf.name);
    if (auto set = SetLimits(directory.get(), leaf.limits); !set.ok()) return set;
    if (tree.leaves.size() > 1) continue;
    if (auto entered = TryEntering(directory.get()); !entered.ok()) return entered;
  }
  return {};
}

// What is there and not locked is of a broker that was killed; its processes have ended with it, or do so now.
void VmCgroup::Sweep(int parent) {
  for (const std::string& name : Subdirectories(parent)) {
    Tree tree;
    tree.directory = OwnFd(::openat(parent, name.c_str(), kDirectoryFlags));
    if (!tree.directory.valid() || ::flock(tree.directory.get(), LOCK_EX | LOCK_NB) != 0) continue;
    auto copy = DuplicateFd(parent);
    if (!copy.ok()) return;
    tree.parent = *std::move(copy);
    tree.name = name;
    tree.kill = OwnFd(::openat(tree.directory.get(), "cgroup.kill", O_WRONLY | O_CLOEXEC));
    tree.leaves = Subdirectories(tree.directory.get());
    Remove(tree);
  }
}

bool VmCgroup::Remove(const Tree& tree) {
  if (tree.kill.valid()) (void)!::write(tree.kill.get(), "1", 1);
  // A process that was killed is gone soon, not at once.
  for (int i = 0; i < kRemoveTries; ++i) {
    for (const std::string& leaf : tree.leaves) ::unlinkat(tree.directory.get(), leaf.c_str(), AT_REMOVEDIR);
    if (::unlinkat(tree.parent.get(), tree.name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return true;
    if (errno != EBUSY && errno != ENOTEMPTY) return false;
    Pause();
  }
  return false;
}

}  // namespace bulkhead::broker
