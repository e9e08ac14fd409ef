// SPDX-License-Identifier: Apache-2.0
// Where the VMs of one user are found: a directory of that user alone with NAME.lock, held while the VM lives, and
// NAME.sock, the broker's control socket. Launcher, main thread; throws FatalError.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "ipc/fd.h"

namespace bulkhead::launcher {

class RuntimeDir {
 public:
  // kMine: to run VMs and to end them. kAnyonesForRoot: only to look, which root may in another user's directory; that
  // user may have put anything there, so nothing is made or removed in it.
  enum class Whose { kMine, kAnyonesForRoot };

  // $BULKHEAD_RUNTIME_DIR, /run/bulkhead for root, $XDG_RUNTIME_DIR/bulkhead, or /tmp/bulkhead-UID; made if missing,
  // and refused if somebody else could write there.
  explicit RuntimeDir(Whose whose = Whose::kMine);

  const std::string& path() const { return path_; }
  // Whose directory it is, and so whose brokers listen in it.
  uid_t owner() const { return owner_; }
  std::string SocketOf(const std::string& name) const;

  // Takes a name for a VM; its files go with the lock.
  class NameLock {
   public:
    NameLock(std::string path_without_suffix, OwnFd lock)
        : path_(std::move(path_without_suffix)), lock_(std::move(lock)) {}
    NameLock(NameLock&&) = default;
    NameLock& operator=(NameLock&&) = delete;
    ~NameLock();

   private:
    std::string path_;
    OwnFd lock_;
  };
  NameLock LockName(const std::string& name) const;

  // Whether a VM holds this name; if not, what one left behind is removed where this is the user's own directory.
  bool Lives(const std::string& name) const;
  // Names of the VMs that live; what others left behind is removed.
  std::vector<std::string> LiveNames() const;

 private:
  std::string LockOf(const std::string& name) const;
  bool IsMine() const;

  std::string path_;
  uid_t owner_;
};

}  // namespace bulkhead::launcher
