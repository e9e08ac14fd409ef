// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/raw_image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "device-procs/common/block/raw_channel.h"

namespace bulkhead::device {
namespace {

constexpr uint32_t kSectorBytes = 512;
// What file systems on today's disks write at least.
constexpr uint32_t kUsualBlockBytes = 4096;

struct DiskFile {
  int fd;
  struct stat status;
  int flags;
  bool is_device() const { return S_ISBLK(status.st_mode); }
};

DiskFile Inspect(int fd, bool read_only) {
  DiskFile file{.fd = fd, .status = {}, .flags = ::fcntl(fd, F_GETFL)};
  if (file.flags < 0 || ::fstat(fd, &file.status) != 0) ThrowErrno("look at the disk image");
  if (!S_ISREG(file.status.st_mode) && !S_ISBLK(file.status.st_mode)) {
    throw FatalError("the disk image is neither a regular file nor a block device");
  }
  if (!read_only && (file.flags & O_ACCMODE) != O_RDWR) {
    throw FatalError("the disk image was not opened for writing", EACCES);
  }
  return file;
}

void SetFlags(DiskFile& file, int flags) {
  if (flags == file.flags) return;
  if (::fcntl(file.fd, F_SETFL, flags) != 0) ThrowErrno("change how the disk image is accessed");
  file.flags = flags;
}

BlockGeometry MeasureDevice(int fd) {
  BlockGeometry geometry;
  int logical = 0;
  unsigned physical = 0;
  if (::ioctl(fd, BLKGETSIZE64, &geometry.size_bytes) != 0 || ::ioctl(fd, BLKSSZGET, &logical) != 0 ||
      ::ioctl(fd, BLKPBSZGET, &physical) != 0) {
    ThrowErrno("measure the block device");
  }
  geometry.stored_bytes = geometry.size_bytes;
  geometry.logical_block_bytes = static_cast<uint32_t>(logical);
  geometry.physical_block_bytes = std::max(physical, geometry.logical_block_bytes);
  return geometry;
}

// Whether one logical block can be read past the page cache: the oldest way to ask.
bool DirectReadWorks(int fd) {
  constexpr size_t kProbeBytes = kSectorBytes;
  alignas(kUsualBlockBytes) std::array<std::byte, kProbeBytes> buffer;
  return ::pread(fd, buffer.data(), buffer.size(), 0) >= 0;
}

// What O_DIRECT asks for; nothing where it cannot be had in units of the logical block.
std::optional<BufferAlignment> MeasureDirectIo(const DiskFile& file, uint32_t logical_block_bytes) {
  struct statx status {};
  if (::statx(file.fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && (status.stx_mask & STATX_DIOALIGN) != 0) {
    const bool usable = status.stx_dio_mem_align != 0 && status.stx_dio_mem_align <= RawChannel::kBounceAlignment &&
                        status.stx_dio_offset_align != 0 && status.stx_dio_offset_align <= logical_block_bytes;
    if (!usable) return std::nullopt;
    // Kernels differ in whether the length of each piece or only the sum counts.
    return BufferAlignment{.address_bytes = status.stx_dio_mem_align, .length_bytes = logical_block_bytes};
  }
  // Kernels before 6.1, and file systems that do not say. Block devices take what their block size says.
  if (!file.is_device() && !DirectReadWorks(file.fd)) return std::nullopt;
  return BufferAlignment{.address_bytes = logical_block_bytes, .length_bytes = logical_block_bytes};
}

}  // namespace

RawImage::RawImage(OwnFd file, const BlockGeometry& geometry, const BufferAlignment& alignment, PastEnd past_end)
    : file_(std::move(file)), geometry_(geometry), alignment_(alignment), past_end_(past_end) {
  // Never written, so all of it is the kernel's one page of zeroes.
  zeroes_ = ::mmap(nullptr, RawChannel::kZeroBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (zeroes_ == MAP_FAILED) ThrowErrno("map a buffer of zeroes");
}

RawImage::~RawImage() { ::munmap(zeroes_, RawChannel::kZeroBytes); }

std::unique_ptr<BlockChannel> RawImage::OpenChannel(IoRing& ring, Offload&) {
  return std::make_unique<RawChannel>(ring, file_.get(), ring.AddFile(file_.get()), alignment_, past_end_, zeroes_);
}

std::unique_ptr<RawImage> OpenRawImage(OwnFd fd, const RawImageOptions& options) {
  DiskFile file = Inspect(fd.get(), options.read_only);
  BlockGeometry geometry;
  if (file.is_device()) {
    geometry = MeasureDevice(file.fd);
  } else {
    geometry = {.size_bytes = static_cast<uint64_t>(file.status.st_size),
                .stored_bytes = static_cast<uint64_t>(file.status.st_blocks) * kSectorBytes,
                .logical_block_bytes = kSectorBytes,
                .physical_block_bytes = kUsualBlockBytes};
  }
  geometry.read_only = options.read_only;
  const uint64_t rest = geometry.size_bytes % geometry.logical_block_bytes;
  const bool zeroes_follow = options.past_end == PastEnd::kZeroes;
  geometry.size_bytes += zeroes_follow && rest != 0 ? geometry.logical_block_bytes - rest : -rest;
  if (geometry.size_bytes == 0 && !zeroes_follow) {
    throw FatalError("the disk image holds less than one sector of " + std::to_string(geometry.logical_block_bytes) +
                     " bytes; make it larger, or give the right file");
  }
  BufferAlignment alignment;
  if (options.direct_io) {
    const auto direct = MeasureDirectIo(file, geometry.logical_block_bytes);
    if (direct) alignment = *direct;
    // io_uring would answer "try again" itself on a file that does not block.
    SetFlags(file, direct ? file.flags & ~O_NONBLOCK : file.flags & ~(O_NONBLOCK | O_DIRECT));
  } else {
    SetFlags(file, file.flags & ~O_NONBLOCK);
  }
  return std::make_unique<RawImage>(std::move(fd), geometry, alignment, options.past_end);
}

}  // namespace bulkhead::device
