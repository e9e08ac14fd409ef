// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/process_facts_descriptors.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <utility>

#include "ipc/fd.h"

namespace bulkhead::launcher {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kMemoryMajor = 1;
constexpr unsigned kNullMinor = 3;
constexpr unsigned kMiscMajor = 10;
constexpr unsigned kKvmMinor = 232;
constexpr unsigned kTunMinor = 200;
constexpr unsigned kVhostNetMinor = 238;

constexpr std::string_view kMemfdPrefix = "/memfd:";
constexpr std::string_view kDeletedSuffix = " (deleted)";

// Objects without a place in a file system, as fs/anon_inodes.c names them; some kernels put brackets around.
constexpr std::pair<std::string_view, FdKind> kAnonymous[] = {
    {"eventfd", FdKind::kEventfd},   {"eventpoll", FdKind::kEpoll}, {"timerfd", FdKind::kTimerfd},
    {"signalfd", FdKind::kSignalfd}, {"inotify", FdKind::kInotify}, {"pidfd", FdKind::kPidfd},
    {"io_uring", FdKind::kIoUring},  {"kvm-vm", FdKind::kKvmVm},    {"seccomp notify", FdKind::kSeccompListener},
};

FdKind AnonymousKind(std::string_view name) {
  if (name.starts_with('[') && name.ends_with(']')) name = name.substr(1, name.size() - 2);
  for (const auto& [known, kind] : kAnonymous) {
    if (name == known) return kind;
  }
  return name.starts_with("kvm-vcpu:") ? FdKind::kKvmVcpu : FdKind::kOther;
}

FdKind FileKind(const struct stat& status, std::string_view target) {
  if (S_ISREG(status.st_mode)) {
    if (status.st_dev != MemfdDevice() || !target.starts_with("memfd:")) return FdKind::kFile;
    if (target.starts_with("memfd:guest-")) return FdKind::kGuestMemory;
    // A disk's image like any other, which the launcher made (cloud_init.cc): it counts among a process's files.
    if (target == "memfd:cloud-init") return FdKind::kFile;
    if (target.starts_with("memfd:packets-")) return FdKind::kPacketRing;
    if (target.starts_with("memfd:journal-")) return FdKind::kJournal;
    if (target.starts_with("memfd:output-")) return FdKind::kOutputStage;
    if (target.starts_with("memfd:dirty-")) return FdKind::kDirtyLog;
    return target.starts_with("memfd:exits-") ? FdKind::kExitRing : FdKind::kOtherMemory;
  }
  if (S_ISSOCK(status.st_mode)) return FdKind::kSocket;
  if (S_ISFIFO(status.st_mode)) return FdKind::kPipe;
  if (S_ISBLK(status.st_mode)) return FdKind::kBlockDevice;
  if (S_ISDIR(status.st_mode)) return FdKind::kDirectory;
  if (!S_ISCHR(status.st_mode)) return FdKind::kOther;
  if (status.st_rdev == ::makedev(kMemoryMajor, kNullMinor)) return FdKind::kNull;
  if (status.st_rdev == ::makedev(kMiscMajor, kTunMinor)) return FdKind::kTap;
  if (status.st_rdev == ::makedev(kMiscMajor, kVhostNetMinor)) return FdKind::kVhostNet;
  return status.st_rdev == ::makedev(kMiscMajor, kKvmMinor) ? FdKind::kKvm : FdKind::kTerminal;
}

Descriptor ReadDescriptor(int directory, const char* name) {
  Descriptor descriptor{.number = std::atoi(name), .kind = FdKind::kOther, .target = {}};
  std::array<char, PATH_MAX> text;
  const ssize_t length = ::readlinkat(directory, name, text.data(), text.size());
  if (length <= 0) return descriptor;
  std::string_view target(text.data(), static_cast<size_t>(length));
  constexpr std::string_view kAnonPrefix = "anon_inode:";
  if (target.starts_with(kAnonPrefix)) {
    descriptor.kind = AnonymousKind(target.substr(kAnonPrefix.size()));
  } else if (target.starts_with("pidfd:")) {  // since Linux 6.9 on some configurations
    descriptor.kind = FdKind::kPidfd;
  } else {
    struct stat status {};
    if (::fstatat(directory, name, &status, 0) != 0) return descriptor;
    if (target.starts_with(kMemfdPrefix) && status.st_dev == MemfdDevice()) {
      target.remove_prefix(1);
      if (target.ends_with(kDeletedSuffix)) target.remove_suffix(kDeletedSuffix.size());
    }
    descriptor.kind = FileKind(status, target);
  }
  descriptor.target = target;
  return descriptor;
}

}  // namespace

const char* FdKindName(FdKind kind) {
  switch (kind) {
    case FdKind::kNull:
      return "/dev/null";
    case FdKind::kSocket:
      return "socket";
    case FdKind::kPipe:
      return "pipe";
    case FdKind::kEventfd:
      return "eventfd";
    case FdKind::kEpoll:
      return "epoll";
    case FdKind::kTimerfd:
      return "timerfd";
    case FdKind::kSignalfd:
      return "signalfd";
    case FdKind::kInotify:
      return "inotify";
    case FdKind::kPidfd:
      return "pidfd";
    case FdKind::kIoUring:
      return "io_uring";
    case FdKind::kSeccompListener:
      return "seccomp listener";
    case FdKind::kKvm:
      return "/dev/kvm";
    case FdKind::kKvmVm:
      return "KVM VM";
    case FdKind::kKvmVcpu:
      return "KVM vCPU";
    case FdKind::kTap:
      return "tap";
    case FdKind::kVhostNet:
      return "vhost-net";
    case FdKind::kGuestMemory:
      return "guest memory";
    case FdKind::kPacketRing:
      return "packet ring";
    case FdKind::kExitRing:
      return "exit ring";
    case FdKind::kDirtyLog:
      return "dirty log";
    case FdKind::kJournal:
      return "journal";
    case FdKind::kOutputStage:
      return "output stage";
    case FdKind::kOtherMemory:
      return "other memfd";
    case FdKind::kFile:
      return "file";
    case FdKind::kBlockDevice:
      return "block device";
    case FdKind::kTerminal:
      return "terminal";
    case FdKind::kDirectory:
      return "directory";
    case FdKind::kOther:
      break;
  }
  return "other";
}

dev_t MemfdDevice() {
  static const dev_t device = [] {
    const OwnFd memory(::memfd_create("bulkhead", MFD_CLOEXEC));
    struct stat status {};
    return memory.valid() && ::fstat(memory.get(), &status) == 0 ? status.st_dev : dev_t{0};
  }();
  return device;
}

std::optional<std::vector<Descriptor>> ReadDescriptors(pid_t pid) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(("/proc/" + std::to_string(pid) + "/fd").c_str()),
                                                      ::closedir);
  if (!directory) return std::nullopt;
  std::vector<Descriptor> descriptors;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (entry->d_name[0] == '.') continue;
    // Its own view of this list is one descriptor more.
    if (pid == ::getpid() && std::atoi(entry->d_name) == ::dirfd(directory.get())) continue;
    descriptors.push_back(ReadDescriptor(::dirfd(directory.get()), entry->d_name));
  }
  std::sort(descriptors.begin(), descriptors.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
  return descriptors;
}

}  // namespace bulkhead::launcher
