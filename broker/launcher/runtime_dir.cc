// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/runtime_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockSuffix = ".lock";
constexpr const char* kSocketSuffix = ".sock";
// Whoever sweeps up a stale lock holds it for a moment; a VM's is held for good.
constexpr int kLockAttempts = 5;
constexpr auto kLockPause = std::chrono::milliseconds(20);

std::string ChoosePath() {
  if (const char* path = std::getenv("BULKHEAD_RUNTIME_DIR"); path != nullptr && *path != '\0') return path;
  if (::geteuid() == 0) return "/run/bulkhead";
  if (const char* path = std::getenv("XDG_RUNTIME_DIR"); path != nullptr && *path != '\0') {
    return std::string(path) + "/bulkhead";
  }
  return "/tmp/bulkhead-" + std::to_string(::geteuid());
}

// " (process N)", if the lock's holder has written it down.
std::string Holder(const std::string& path) {
  long pid = 0;
  std::ifstream(path) >> pid;
  return pid > 0 ? " (process " + std::to_string(pid) + ")" : "";
}

struct flock WholeFile() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

bool TryLock(const OwnFd& file) {
  struct flock lock = WholeFile();
  return ::fcntl(file.get(), F_OFD_SETLK, &lock) == 0;
}

bool IsLocked(const OwnFd& file) {
  struct flock lock = WholeFile();
  return ::fcntl(file.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

// Whether `path` still names the file that is open: its holder removes it before letting go of the lock.
bool StillThere(const OwnFd& file, const std::string& path) {
  struct stat open_file {
  }, named{};
  return ::fstat(file.get(), &open_file) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open_file.st_ino == named.st_ino && open_file.st_dev == named.st_dev;
}

}  // namespace

RuntimeDir::RuntimeDir(Whose whose) : path_(fs::absolute(ChoosePath())) {
  if (::mkdir(path_.c_str(), 0700) != 0 && errno != EEXIST) {
    throw FatalError(ErrnoError(errno, "make the runtime directory " + path_).message +
                     "; set BULKHEAD_RUNTIME_DIR to a directory of yours");
  }
  struct stat info {};
  if (::lstat(path_.c_str(), &info) != 0) ThrowErrno("runtime directory " + path_);
  const bool may_be_used = info.st_uid == ::geteuid() || (whose == Whose::kAnyonesForRoot && ::geteuid() == 0);
  if (!S_ISDIR(info.st_mode) || !may_be_used || (info.st_mode & 0022) != 0) {
    throw FatalError("runtime directory " + path_ +
                     ": must be a directory of yours that only you can write; remove it or set BULKHEAD_RUNTIME_DIR");
  }
  owner_ = info.st_uid;
}

bool RuntimeDir::IsMine() const { return owner_ == ::geteuid(); }

std::string RuntimeDir::SocketOf(const std::string& name) const { return path_ + "/" + name + kSocketSuffix; }

std::string RuntimeDir::LockOf(const std::string& name) const { return path_ + "/" + name + kLockSuffix; }

RuntimeDir::NameLock RuntimeDir::LockName(const std::string& name) const {
  const std::string path = LockOf(name);
  for (int attempt = 1;; ++attempt) {
    OwnFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid()) ThrowErrno("lock the VM name in " + path);
    if (!TryLock(file)) {
      if (attempt < kLockAttempts) {
        std::this_thread::sleep_for(kLockPause);
        continue;
      }
      throw FatalError("name '" + name + "': a VM of this name is running" + Holder(path) +
                       "; choose another with --name, or stop it with "
                       "`bulkhead stop " +
                       name + "`");
    }
    if (!StillThere(file, path)) continue;
    // For whoever looks; the lock alone counts.
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), pid.data(), pid.size(), 0) < 0) {
      ThrowErrno("write " + path);
    }
    return NameLock(path_ + "/" + name, std::move(file));
  }
}

RuntimeDir::NameLock::~NameLock() {
  if (!lock_.valid()) return;
  ::unlink((path_ + kSocketSuffix).c_str());
  ::unlink((path_ + kLockSuffix).c_str());
}

bool RuntimeDir::Lives(const std::string& name) const {
  // Made if it is missing: a socket alone is what a broker leaves that was killed after the sweep of its launcher's
  // lock.
  const std::string path = LockOf(name);
  const int making = IsMine() ? O_CREAT : 0;
  const OwnFd lock(::open(path.c_str(), O_RDWR | making | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!lock.valid()) return false;
  if (IsLocked(lock)) return true;
  if (IsMine() && TryLock(lock) && StillThere(lock, path)) {
    ::unlink(SocketOf(name).c_str());
    ::unlink(path.c_str());
  }
  return false;
}

std::vector<std::string> RuntimeDir::LiveNames() const {
  std::set<std::string> seen;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string suffix = entry.path().extension();
    if (suffix == kLockSuffix || suffix == kSocketSuffix) seen.insert(entry.path().stem());
  }
  std::vector<std::string> names;
  for (const std::string& name : seen) {
    if (Lives(name)) names.push_back(name);
  }
  return names;
}

}  // namespace bulkhead::launcher
