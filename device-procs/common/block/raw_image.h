// SPDX-License-Identifier: Apache-2.0
// A raw image: the disk's bytes are the file's. Regular files and block devices, through the page cache or past it
// (O_DIRECT). Opening: main thread, before lock-down; it looks at the file's size and alignment, not at its bytes.
// Channels: their queue's thread.
#pragma once

#include <cstdint>
#include <memory>

#include "device-procs/common/block/block_image.h"
#include "ipc/fd.h"

namespace bulkhead::device {

// What O_DIRECT asks of each piece of memory: its address and its length are multiples of these. 1: nothing.
struct BufferAlignment {
  uint32_t address_bytes = 1;
  uint32_t length_bytes = 1;
};

// What a read past the end of the file gives: the disk itself does not shrink, but under a format a file may end within
// its last cluster, and a short base is followed by zeroes.
enum class PastEnd : uint8_t { kError, kZeroes };

class RawImage final : public BlockImage {
 public:
  RawImage(OwnFd file, const BlockGeometry& geometry, const BufferAlignment& alignment, PastEnd past_end);
  ~RawImage() override;

  const BlockGeometry& geometry() const override { return geometry_; }
  unsigned max_channels() const override { return UINT32_MAX; }
  std::unique_ptr<BlockChannel> OpenChannel(IoRing& ring, Offload& offload) override;

 private:
  OwnFd file_;
  BlockGeometry geometry_;
  BufferAlignment alignment_;
  PastEnd past_end_;
  void* zeroes_;
};

struct RawImageOptions {
  bool read_only = false;
  // The file was opened with O_DIRECT: where that wants more than 512-byte alignment of a regular file, it is switched
  // off, since the partition tables inside were made for 512-byte sectors.
  bool direct_io = false;
  PastEnd past_end = PastEnd::kError;
};

// Takes size, block sizes and alignment from the open file. The last part of a block is left out, or with
// PastEnd::kZeroes counted as a whole one; only then may the file be empty. Throws FatalError.
std::unique_ptr<RawImage> OpenRawImage(OwnFd file, const RawImageOptions& options);

}  // namespace bulkhead::device
