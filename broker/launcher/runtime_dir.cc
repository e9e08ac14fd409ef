// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/runtime_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLockSuffix = ".lock";

std::string ChoosePath() {
  if (const char* path = std::getenv("BULKHEAD_RUNTIME_DIR"); path != nullptr && *path != '\0') return path;
  if (::geteuid() == 0) return "/run/bulkhead";
  if (const char* path = std::getenv("XDG_RUNTIME_DIR"); path != nullptr && *path != '\0') {
    return std::string(path) + "/bulkhead";
  }
  return "/tmp/bulkhead-" + std::to_string(::geteuid());
}

bool TryLock(const OwnFd& file) { return ::flock(file.get(), LOCK_EX | LOCK_NB) == 0; }

// Whether `path` still names the file that is open: its holder removes it before letting go of the lock.
bool StillThere(const OwnFd& file, const std::string& path) {
  struct stat open_file {}, named {};
  return ::fstat(file.get(), &open_file) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open_file.st_ino == named.st_ino && open_file.st_dev == named.st_dev;
}

}  // namespace

RuntimeDir::RuntimeDir() : path_(ChoosePath()) {
  if (::mkdir(path_.c_str(), 0700) != 0 && errno != EEXIST) ThrowErrno("make the runtime directory " + path_);
  struct stat info {};
  if (::lstat(path_.c_str(), &info) != 0) ThrowErrno("runtime directory " + path_);
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 0022) != 0) {
    throw FatalError("runtime directory " + path_ +
                     ": must be a directory of yours that only you can write; remove it or set BULKHEAD_RUNTIME_DIR");
  }
}

RuntimeDir::NameLock RuntimeDir::LockName(const std::string& name) const {
  const std::string path = LockOf(name);
  for (;;) {
    OwnFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid()) ThrowErrno("lock the VM name in " + path);
    if (!TryLock(file)) {
      throw FatalError("name '" + name + "': a VM of this name is running; choose another with --name, or stop it with "
                       "`bulkhead stop " + name + "`");
    }
    if (StillThere(file, path)) return NameLock(path_ + "/" + name, std::move(file));
  }
}

RuntimeDir::NameLock::~NameLock() {
  if (!lock_.valid()) return;
  ::unlink((path_ + ".sock").c_str());
  ::unlink((path_ + std::string(kLockSuffix)).c_str());
}

std::vector<std::string> RuntimeDir::LiveNames() const {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string file = entry.path().filename();
    if (!file.ends_with(kLockSuffix)) continue;
    const std::string name = file.substr(0, file.size() - kLockSuffix.size());
    const OwnFd lock(::open(entry.path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (!lock.valid()) continue;
    if (!TryLock(lock)) {
      names.push_back(name);
    } else if (StillThere(lock, entry.path())) {
      ::unlink(SocketOf(name).c_str());
      ::unlink(entry.path().c_str());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace bulkhead::launcher
