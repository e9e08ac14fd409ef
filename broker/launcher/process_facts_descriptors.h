// SPDX-License-Identifier: Apache-2.0
// The open descriptors of another process, by kind. Launcher, main thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace bulkhead::launcher {

enum class FdKind {
  kNull,  // /dev/null
  kSocket,
  kPipe,
  kEventfd,
  kEpoll,
  kTimerfd,
  kSignalfd,
  kInotify,
  kPidfd,
  kIoUring,
  kSeccompListener,
  kKvm,          // /dev/kvm
  kKvmVm,        // a VM
  kKvmVcpu,      // one of its processors
  kTap,          // /dev/net/tun
  kVhostNet,     // /dev/vhost-net
  kGuestMemory,  // memfd "guest-*"
  kPacketRing,   // between a net process and its usernet process
  kExitRing,     // memfd "exits-*"
  kJournal,      // memfd "journal-*"
  kOutputStage,  // memfd "output-*"
  kDirtyLog,     // memfd "dirty-*"
  kOtherMemory,  // any other memfd
  kFile,         // a regular file
  kBlockDevice,
  kTerminal,  // and any other character device
  kDirectory,
  kOther,
};
inline constexpr int kFdKinds = static_cast<int>(FdKind::kOther) + 1;

struct Descriptor {
  int number = -1;
  FdKind kind = FdKind::kOther;
  std::string target;  // as /proc shows it: "/var/lib/web1.img", "socket:[4711]", "memfd:guest-web1"
};

// "eventfd", "guest memory"
const char* FdKindName(FdKind kind);

// Nothing if this user may not look.
std::optional<std::vector<Descriptor>> ReadDescriptors(pid_t pid);

// The file system that memfds are on, so that no file of another can pass for one; 0 if there is none.
dev_t MemfdDevice();

}  // namespace bulkhead::launcher
