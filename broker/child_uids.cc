// SPDX-License-Identifier: Apache-2.0
#include "broker/child_uids.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace bulkhead::broker {
namespace {

constexpr const char* kDirectory = "/run/bulkhead";
constexpr const char* kFile = "/run/bulkhead/uids";

std::string ReadUidMap() {
  std::ostringstream text;
  text << std::ifstream("/proc/self/uid_map").rdbuf();
  return text.str();
}

OwnFd OpenLockFile() {
  if (::mkdir(kDirectory, 0700) != 0 && errno != EEXIST) ThrowErrno(std::string("make ") + kDirectory);
  OwnFd file(::open(kFile, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) ThrowErrno(std::string("open ") + kFile);
  return file;
}

bool Lock(const OwnFd& file, uint32_t uid) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = uid;
  lock.l_len = 1;
  return ::fcntl(file.get(), F_OFD_SETLK, &lock) == 0;
}

}  // namespace

bool IsMapped(const UidRange& range, const std::string& uid_map) {
  std::istringstream lines(uid_map);
  uint64_t inside = 0, outside = 0, count = 0;
  while (lines >> inside >> outside >> count) {
    if (range.first >= inside && uint64_t{range.first} + range.count <= inside + count) return true;
  }
  return false;
}

ChildUids::ChildUids(std::optional<UidRange> range) : range_(range.value_or(UidRange())) {
  if (::geteuid() != 0) {
    if (range)
      throw FatalError("--uids: only root can give processes other user ids; start Bulkhead as root, or without it");
    missing_ = "no user id for each process (only root can give them)";
    return;
  }
  if (!IsMapped(range_, ReadUidMap())) {
    if (range) throw FatalError("--uids: this container does not have all of these user ids; see /proc/self/uid_map");
    missing_ = "no user id for each process (this container has not enough of them; see --uids)";
    return;
  }
  file_ = OpenLockFile();
  next_ = static_cast<uint32_t>(::getpid()) % range_.count;
}

std::optional<uint32_t> ChildUids::Take() {
  if (!file_.valid()) return std::nullopt;
  for (uint32_t tried = 0; tried < range_.count; ++tried) {
    const uint32_t uid = range_.first + next_;
    next_ = (next_ + 1) % range_.count;
    if (!taken_.contains(uid) && Lock(file_, uid)) {
      taken_.insert(uid);
      return uid;
    }
  }
  throw FatalError("no user id is left for another process; give a larger range with --uids");
}

}  // namespace bulkhead::broker
