// SPDX-License-Identifier: Apache-2.0
#include "ipc/fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

namespace bulkhead {

Result<OwnFd> DuplicateFd(int fd) {
  OwnFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return ErrnoError(errno, "duplicate a file descriptor");
  return copy;
}

Result<OwnFd> MakeEventFd() {
  OwnFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) return ErrnoError(errno, "create an eventfd");
  return fd;
}

void SignalEventFd(int fd) {
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = ::write(fd, &one, sizeof one);
}

uint64_t DrainEventFd(int fd) {
  uint64_t count = 0;
  return ::read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

Result<OwnFd> MakeSealedMemory(const std::string& name, uint64_t size_bytes) {
  OwnFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoError(errno, "create shared memory");
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) return ErrnoError(errno, "size shared memory");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return ErrnoError(errno, "seal shared memory");
  }
  return fd;
}

}  // namespace bulkhead
