// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/host_files.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kSectorBytes = 512;

struct stat StatOf(const OwnFd& file, const std::string& subject) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) ThrowErrno(subject);
  return info;
}

[[noreturn]] void ThrowOpenError(const std::string& subject, int code, bool for_writing) {
  switch (code) {
    case ENOENT:
      throw FatalError(subject + ": there is no such file; check the path", code);
    case EACCES:
    case EPERM:
      throw FatalError(subject + ": permission denied; it must be readable" +
                           (for_writing ? " and writable by you, or say readonly" : " by you"), code);
    case EROFS:
      throw FatalError(subject + ": the file system is read-only; add readonly to the disk", code);
    case EISDIR:
      throw FatalError(subject + ": is a directory; name a file in it", code);
    case ETXTBSY:
      throw FatalError(subject + ": is a program that is running", code);
    default:
      throw FatalError(ErrnoError(code, subject));
  }
}

// Who holds a lock on this file, as " by process N", if /proc/locks tells.
std::string LockHolder(const struct stat& info) {
  std::ifstream locks("/proc/locks");
  std::string line;
  const std::string inode = ":" + std::to_string(info.st_ino) + " ";
  while (std::getline(locks, line)) {
    if (line.find(inode) == std::string::npos) continue;
    // "1: OFDLCK ADVISORY WRITE -1 00:1f:1234 0 EOF": open-file locks name no process, others do.
    std::istringstream words(line);
    std::string number, kind, advice, access;
    long pid = -1;
    words >> number >> kind >> advice >> access >> pid;
    if (pid > 0) return " by process " + std::to_string(pid);
  }
  return "";
}

void Lock(const OwnFd& file, bool read_only, const std::string& subject) {
  struct flock lock {};
  lock.l_type = static_cast<short>(read_only ? F_RDLCK : F_WRLCK);
  lock.l_whence = SEEK_SET;
  if (::fcntl(file.get(), F_OFD_SETLK, &lock) == 0) return;
  if (errno != EAGAIN && errno != EACCES) ThrowErrno(subject + ": lock it");
  throw FatalError(subject + ": is in use" + LockHolder(StatOf(file, subject)) +
                       "; stop the VM that has it (`bulkhead ps`), or give this one a copy",
                   EBUSY);
}

OwnFd OpenImage(const DiskOption& disk, const std::string& subject, bool& direct_io) {
  const int access = (disk.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  if (disk.direct) {
    OwnFd file(::open(disk.path.c_str(), access | O_DIRECT));
    direct_io = file.valid();
    // Some file systems have no direct I/O (EINVAL): then it goes through the page cache.
    if (file.valid()) return file;
    if (errno != EINVAL) ThrowOpenError(subject, errno, !disk.read_only);
  }
  direct_io = false;
  OwnFd file(::open(disk.path.c_str(), access));
  if (!file.valid()) ThrowOpenError(subject, errno, !disk.read_only);
  return file;
}

OpenDisk OpenOne(const DiskOption& disk) {
  const std::string subject = "disk '" + disk.path + "'";
  OpenDisk opened;
  opened.file = OpenImage(disk, subject, opened.direct_io);
  const struct stat info = StatOf(opened.file, subject);
  if (S_ISDIR(info.st_mode)) ThrowOpenError(subject, EISDIR, false);
  opened.block_device = S_ISBLK(info.st_mode);
  if (!opened.block_device && !S_ISREG(info.st_mode)) {
    throw FatalError(subject + ": is neither a file nor a block device");
  }
  if (S_ISREG(info.st_mode)) {
    if (info.st_size == 0) {
      throw FatalError(subject + ": the image is empty; give it a size with `truncate -s 10G " + disk.path + "`");
    }
    if (static_cast<uint64_t>(info.st_size) % kSectorBytes != 0) {
      throw FatalError(subject + ": its size is not a multiple of 512 bytes; round it up with `truncate -s %512 " +
                       disk.path + "`");
    }
  }
  Lock(opened.file, disk.read_only, subject);
  return opened;
}

}  // namespace

OwnFd OpenSource(const std::string& what, const std::string& path) {
  const std::string subject = what + " '" + path + "'";
  OwnFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file.valid()) ThrowOpenError(subject, errno, false);
  const struct stat info = StatOf(file, subject);
  if (S_ISDIR(info.st_mode)) ThrowOpenError(subject, EISDIR, false);
  if (!S_ISREG(info.st_mode)) throw FatalError(subject + ": is not a regular file");
  if (info.st_size == 0) throw FatalError(subject + ": the file is empty");
  return file;
}

std::vector<OpenDisk> OpenDisks(const std::vector<DiskOption>& disks) {
  std::vector<OpenDisk> opened;
  std::set<std::pair<dev_t, ino_t>> seen;
  for (const DiskOption& disk : disks) {
    struct stat info {};
    const bool known = ::stat(disk.path.c_str(), &info) == 0;
    if (known && !seen.insert({info.st_dev, info.st_ino}).second) {
      throw FatalError("disk '" + disk.path + "': is given twice; a guest would corrupt it");
    }
    opened.push_back(OpenOne(disk));
  }
  return opened;
}

OwnFd OpenOutput(const std::string& path) {
  OwnFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600));
  if (!file.valid()) ThrowOpenError("console output '" + path + "'", errno, true);
  return file;
}

OwnFd ListenAt(const std::string& path) {
  const std::string subject = "console socket '" + path + "'";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw FatalError(subject + ": the path is longer than 107 bytes");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* name = reinterpret_cast<const sockaddr*>(&address);

  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) throw FatalError(subject + ": something else is there; choose another path");
    const OwnFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(probe.get(), name, sizeof address) == 0) throw FatalError(subject + ": is in use; choose another path");
    ::unlink(path.c_str());
  }
  OwnFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) ThrowErrno(subject);
  const mode_t old_mask = ::umask(0077);
  const bool bound = ::bind(socket.get(), name, sizeof address) == 0;
  ::umask(old_mask);
  if (!bound || ::listen(socket.get(), 1) != 0) ThrowErrno(subject);
  return socket;
}

Pty OpenPty() {
  Pty pty;
  pty.master = OwnFd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!pty.master.valid() || ::grantpt(pty.master.get()) != 0 || ::unlockpt(pty.master.get()) != 0) {
    ThrowErrno("create a pseudo-terminal");
  }
  std::string path(128, '\0');
  if (::ptsname_r(pty.master.get(), path.data(), path.size()) != 0) ThrowErrno("name the pseudo-terminal");
  pty.path = path.c_str();
  pty.slave = OwnFd(::open(pty.path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!pty.slave.valid()) ThrowErrno("open the pseudo-terminal");
  termios mode{};
  ::tcgetattr(pty.slave.get(), &mode);
  ::cfmakeraw(&mode);
  ::tcsetattr(pty.slave.get(), TCSANOW, &mode);
  return pty;
}

void CheckHostMemory(uint64_t memory_bytes) {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return;
  const uint64_t host = (uint64_t{info.totalram} + info.totalswap) * info.mem_unit;
  if (memory_bytes <= host) return;
  throw FatalError("memory: " + std::to_string(memory_bytes >> 20) + " MiB is more than this host has (" +
                   std::to_string(host >> 20) + " MiB with swap); ask for less with -m");
}

}  // namespace bulkhead::launcher
