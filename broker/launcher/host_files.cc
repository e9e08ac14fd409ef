// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/host_files.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

namespace bulkhead::launcher {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSectorBytes = 512;

struct stat StatOf(const OwnFd& file, const std::string& subject) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) ThrowErrno(subject);
  return info;
}

enum class Use { kRead, kWriteDisk, kWriteOutput };

[[noreturn]] void ThrowOpenError(const std::string& subject, int code, Use use) {
  const auto fail = [&](const std::string& why) { throw FatalError(subject + ": " + why, code); };
  switch (code) {
    case ENOENT:
      fail(use == Use::kWriteOutput ? "there is no such directory; make it first"
                                    : "there is no such file; check the path");
      break;
    case ENOTDIR:
      fail("a part of the path is not a directory; check the path");
      break;
    case EACCES:
    case EPERM:
      fail(use == Use::kRead        ? "permission denied; you need to be able to read it"
           : use == Use::kWriteDisk ? "permission denied; you need to be able to write it, or add readonly to the disk"
                                    : "permission denied; you need to be able to write it");
      break;
    case EROFS:
      fail(use == Use::kWriteDisk ? "the file system is read-only; add readonly to the disk"
                                  : "the file system is read-only; choose another path");
      break;
    case EISDIR:
      fail("is a directory; name a file in it");
      break;
    case ENXIO:
      fail("is a socket, or a pipe or device that nobody answers at; name a regular file");
      break;
    case ETXTBSY:
      fail("is a program that is running; name another file");
      break;
    default:
      break;
  }
  throw FatalError(ErrnoError(code, subject));
}

// "major:minor:inode" as the kernel writes it of a lock's file.
std::string LockName(const struct stat& info) {
  char file[64];
  std::snprintf(file, sizeof file, "%02x:%02x:%lu", major(info.st_dev), minor(info.st_dev), info.st_ino);
  return file;
}

// Whether one of the open files of a process holds a lock on this file. Sees only what this user may.
bool HoldsLock(const fs::path& process, const std::string& lock_name) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(process / "fdinfo", error)) {
    std::ifstream info(entry.path());
    std::string line;
    while (std::getline(info, line)) {
      if (line.starts_with("lock:") && line.find(" " + lock_name + " ") != std::string::npos) return true;
    }
  }
  return false;
}

// Who holds a lock on this file, as " by process N", if that can be told. The locks of open files, as VMs use them,
// name no process in /proc/locks, but each holder's fdinfo shows them; a VM's oldest holder, its launcher, has the
// lowest number unless numbers wrapped around.
std::string LockHolder(const struct stat& info) {
  const std::string lock_name = LockName(info);
  long holder = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const long pid = std::atol(entry.path().filename().c_str());
    if (pid > 0 && pid != ::getpid() && (holder == 0 || pid < holder) && HoldsLock(entry.path(), lock_name))
      holder = pid;
  }
  return holder > 0 ? " by process " + std::to_string(holder) : "";
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

// One file of a disk as it is to be opened.
struct ImageRequest {
  std::string subject;  // "disk 'a.img'"
  std::string path;
  DiskFormat format;
  bool read_only;
  bool direct;
  bool locked = true;
};

OwnFd OpenWithAccess(const ImageRequest& image, bool& direct_io) {
  const int access = (image.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  const Use use = image.read_only ? Use::kRead : Use::kWriteDisk;
  if (image.direct) {
    OwnFd file(::open(image.path.c_str(), access | O_DIRECT));
    direct_io = file.valid();
    // Some file systems have no direct I/O (EINVAL): then it goes through the page cache.
    if (file.valid()) return file;
    if (errno != EINVAL) ThrowOpenError(image.subject, errno, use);
  }
  direct_io = false;
  OwnFd file(::open(image.path.c_str(), access));
  if (!file.valid()) ThrowOpenError(image.subject, errno, use);
  return file;
}

OpenImage OpenOne(const ImageRequest& image) {
  OpenImage opened;
  opened.file = OpenWithAccess(image, opened.direct_io);
  const struct stat info = StatOf(opened.file, image.subject);
  if (S_ISDIR(info.st_mode)) ThrowOpenError(image.subject, EISDIR, Use::kRead);
  opened.block_device = S_ISBLK(info.st_mode);
  if (!opened.block_device && !S_ISREG(info.st_mode)) {
    throw FatalError(image.subject + ": is neither a file nor a block device");
  }
  if (S_ISREG(info.st_mode) && info.st_size == 0 && image.format != DiskFormat::kRaw) {
    throw FatalError(image.subject + ": the file is empty and no image; make one with `bulkhead img create -f qcow2 " +
                     image.path + " 10G`");
  }
  if (image.locked) Lock(opened.file, image.read_only, image.subject);
  return opened;
}

// A raw disk is as large as its file; under a format, and below another file, any size will do.
void CheckRawSize(const OpenImage& image, const std::string& path) {
  const std::string subject = "disk '" + path + "'";
  const struct stat info = StatOf(image.file, subject);
  if (!S_ISREG(info.st_mode)) return;
  if (info.st_size == 0) {
    throw FatalError(subject + ": the image is empty; make one with `bulkhead img create -f raw " + path + " 10G`");
  }
  if (static_cast<uint64_t>(info.st_size) % kSectorBytes != 0) {
    throw FatalError(subject + ": its size is not a multiple of 512 bytes; round it up with `truncate -s %512 " + path +
                     "`");
  }
}

OpenDisk OpenWithBacking(const DiskOption& disk) {
  OpenDisk opened;
  opened.image = OpenOne({.subject = "disk '" + disk.path + "'",
                          .path = disk.path,
                          .format = disk.format,
                          .read_only = disk.read_only,
                          .direct = disk.direct});
  if (disk.format == DiskFormat::kRaw) CheckRawSize(opened.image, disk.path);
  for (const BackingOption& backing : disk.backing) {
    opened.backing.push_back(OpenOne({.subject = "backing file '" + backing.path + "' of disk '" + disk.path + "'",
                                      .path = backing.path,
                                      .format = backing.format,
                                      .read_only = true,
                                      .direct = disk.direct}));
    // It may have become another since the name was looked at.
    if (disk.backing_from_header && opened.backing.back().block_device) {
      throw FatalError("backing file '" + backing.path + "' of disk '" + disk.path +
                       "': is not a regular file; give it with backing=FILE if you mean it");
    }
  }
  return opened;
}

// Which file a path leads to; nothing where that is not there, which opening it tells better.
std::optional<std::pair<dev_t, ino_t>> FileAt(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return std::pair{info.st_dev, info.st_ino};
}

// Locks tell VMs apart, not the disks of one.
void CheckSharing(const std::vector<DiskOption>& disks) {
  std::set<std::pair<dev_t, ino_t>> images, written;
  for (const DiskOption& disk : disks) {
    const auto file = FileAt(disk.path);
    if (file && !images.insert(*file).second) {
      throw FatalError("disk '" + disk.path + "': is given twice; a guest would corrupt it");
    }
    if (file && !disk.read_only) written.insert(*file);
  }
  for (const DiskOption& disk : disks) {
    for (const BackingOption& backing : disk.backing) {
      const auto file = FileAt(backing.path);
      if (file && written.contains(*file)) {
        throw FatalError("backing file '" + backing.path + "' of disk '" + disk.path +
                         "': is a disk that the guest may write, too, which would corrupt what lies on it; add "
                         "readonly to that disk, or leave it out");
      }
    }
  }
}

}  // namespace

OwnFd OpenSource(const std::string& what, const std::string& path) {
  const std::string subject = what + " '" + path + "'";
  OwnFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file.valid()) ThrowOpenError(subject, errno, Use::kRead);
  const struct stat info = StatOf(file, subject);
  if (S_ISDIR(info.st_mode)) ThrowOpenError(subject, EISDIR, Use::kRead);
  if (!S_ISREG(info.st_mode)) throw FatalError(subject + ": is not a regular file");
  if (info.st_size == 0) throw FatalError(subject + ": the file is empty");
  return file;
}

OpenImage OpenImageFile(const std::string& path, bool read_only, bool locked) {
  return OpenOne({.subject = "image '" + path + "'",
                  .path = path,
                  .format = DiskFormat::kRaw,
                  .read_only = read_only,
                  .direct = false,
                  .locked = locked});
}

OpenImage MakeImageFile(const std::string& path, bool& made) {
  const std::string subject = "image '" + path + "'";
  constexpr int kAccess = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  OpenImage opened;
  opened.file = OwnFd(::open(path.c_str(), kAccess | O_CREAT | O_EXCL, 0644));
  made = opened.file.valid();
  if (!made && errno != EEXIST) ThrowOpenError(subject, errno, Use::kWriteOutput);
  if (!made) opened = OpenImageFile(path, false, false);
  Lock(opened.file, false, subject);
  if (!opened.block_device && ::ftruncate(opened.file.get(), 0) != 0) ThrowErrno(subject);
  return opened;
}

std::vector<OpenDisk> OpenDisks(const std::vector<DiskOption>& disks) {
  CheckSharing(disks);
  std::vector<OpenDisk> opened;
  for (const DiskOption& disk : disks) opened.push_back(OpenWithBacking(disk));
  return opened;
}

void DiskLocks::Add(const OwnFd& locked) { files_.push_back(OrThrow(DuplicateFd(locked.get()))); }

DiskLocks::~DiskLocks() {
  for (const OwnFd& file : files_) {
    struct flock lock {};
    lock.l_type = F_UNLCK;
    lock.l_whence = SEEK_SET;
    ::fcntl(file.get(), F_OFD_SETLK, &lock);
  }
}

OwnFd OpenOutput(const std::string& path) {
  OwnFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600));
  if (!file.valid()) ThrowOpenError("console output '" + path + "'", errno, Use::kWriteOutput);
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
    // A datagram socket cannot connect to this one, so nobody notices; the error tells whether somebody is bound there.
    const OwnFd probe(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (::connect(probe.get(), name, sizeof address) == 0 || errno == EPROTOTYPE) {
      throw FatalError(subject + ": is in use; choose another path");
    }
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
