// SPDX-License-Identifier: Apache-2.0
#include "vcpu-runner/boot/image.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace bulkhead::runner {

std::string MiB(uint64_t bytes) { return std::to_string((bytes >> 20) + ((bytes & 0xF'FFFF) != 0 ? 1 : 0)) + " MiB"; }

Result<Image> Image::Open(int fd, std::string label) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoError(errno, label);
  if (S_ISDIR(info.st_mode)) return Error{EISDIR, label + ": is a directory; name the file in it"};
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) return Error{EINVAL, label + ": is not a regular file"};
  const off_t end = ::lseek(fd, 0, SEEK_END);
  if (end < 0) return ErrnoError(errno, label + ": find its size");
  if (end == 0) return Error{EINVAL, label + ": the file is empty"};
  return Image(fd, std::move(label), static_cast<uint64_t>(end));
}

Result<void> Image::Read(uint64_t offset, std::span<std::byte> to) const {
  if (!Contains(offset, to.size())) {
    return Fail("the file ends too early (" + std::to_string(size_bytes_) + " bytes; " + std::to_string(to.size()) +
                " from byte " + std::to_string(offset) + " on are needed): it is truncated; copy it again");
  }
  while (!to.empty()) {
    const ssize_t got = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, label_ + ": read");
    if (got == 0) return Fail("the file became shorter while it was read");
    offset += static_cast<uint64_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
  return {};
}

Result<void> Image::Load(uint64_t offset, uint64_t length, const GuestMemory& memory, Gpa to) const {
  std::vector<iovec> pieces;
  if (auto result = memory.Translate(to, length, pieces); !result.ok()) {
    return Fail("needs memory that the guest does not have; give it more with -m");
  }
  // Straight into guest memory: no buffer, no second copy.
  for (const iovec& piece : pieces) {
    auto result = Read(offset, {static_cast<std::byte*>(piece.iov_base), piece.iov_len});
    if (!result.ok()) return result;
    offset += piece.iov_len;
  }
  return {};
}

}  // namespace bulkhead::runner
