// SPDX-License-Identifier: Apache-2.0
// A raw image: the disk's bytes are the file's. Regular files and block devices, through the page cache or past it
// (O_DIRECT). Opening: main thread, before lock-down; it looks at the file's size and alignment, not at its bytes.
// Channels: their queue's thread.
#pragma once

#include <memory>

#include "device-procs/disk/block_image.h"
#include "ipc/fd.h"

namespace bulkhead::device {

// What O_DIRECT asks of each piece of memory: its address and its length are multiples of these. 1: nothing.
struct BufferAlignment {
  uint32_t address_bytes = 1;
  uint32_t length_bytes = 1;
};

class RawImage final : public BlockImage {
 public:
  RawImage(OwnFd file, const BlockGeometry& geometry, const BufferAlignment& alignment);
  ~RawImage() override;

  const BlockGeometry& geometry() const override { return geometry_; }
  std::unique_ptr<BlockChannel> OpenChannel(IoRing& ring) override;

 private:
  OwnFd file_;
  BlockGeometry geometry_;
  BufferAlignment alignment_;
  void* zeroes_;
};

// Takes size, block sizes and alignment from the open file; a last part of a block is left out. `direct_io` says that
// the file was opened with O_DIRECT: where that wants more than 512-byte alignment of a regular file, it is switched
// off, since the partition tables inside were made for 512-byte sectors. Throws FatalError.
std::unique_ptr<RawImage> OpenRawImage(OwnFd file, bool read_only, bool direct_io);

}  // namespace bulkhead::device
