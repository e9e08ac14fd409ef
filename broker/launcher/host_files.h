// SPDX-License-Identifier: Apache-2.0
// Opens the user's files with the user's rights, and says in one line what is wrong with one. Nothing here reads a byte
// of an image or a kernel. Launcher, main thread; throws FatalError.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "broker/launcher/options.h"
#include "ipc/fd.h"

namespace bulkhead::launcher {

// A kernel or an initrd; `what` stands before the path in errors.
OwnFd OpenSource(const std::string& what, const std::string& path);

struct OpenImage {
  OwnFd file;  // locked: for writing, or for reading if read-only
  bool direct_io = false;
  bool block_device = false;
};
// An image for `bulkhead img`, through the page cache; `locked`: nobody else writes it, or reads it if it is to be
// written.
OpenImage OpenImageFile(const std::string& path, bool read_only, bool locked);
// A file for a new image: what was there is gone. `made`: it was not there.
OpenImage MakeImageFile(const std::string& path, bool& made);

struct OpenDisk {
  OpenImage image;
  std::vector<OpenImage> backing;  // read-only; the file below the image, then the one below that
};
// A file may be below several images, but then it is not written.
std::vector<OpenDisk> OpenDisks(const std::vector<DiskOption>& disks);

// Lets go of the images' locks when it ends. The kernel would do so too, but only some time after the last process is
// gone (an io_uring is taken down in the background), and the next VM may want the image at once. Must outlive the
// broker.
class DiskLocks {
 public:
  void Add(const OwnFd& locked);
  DiskLocks() = default;
  DiskLocks(const DiskLocks&) = delete;
  DiskLocks& operator=(const DiskLocks&) = delete;
  ~DiskLocks();

 private:
  std::vector<OwnFd> files_;
};

// A file that console output is appended to.
OwnFd OpenOutput(const std::string& path);
// A listening UNIX socket at `path`, for this user only. An old socket nobody listens at is replaced.
OwnFd ListenAt(const std::string& path);
// The master of a new pseudo-terminal in raw mode, its slave kept open so that it lasts, and the slave's path.
struct Pty {
  OwnFd master;
  OwnFd slave;
  std::string path;
};
Pty OpenPty();

// More than this host's memory and swap is refused.
void CheckHostMemory(uint64_t memory_bytes);

}  // namespace bulkhead::launcher
