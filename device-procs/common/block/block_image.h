// SPDX-License-Identifier: Apache-2.0
// What a disk image is to the virtio-blk device, and what one image format is to the next: an image stands for the
// whole disk and is shared; a channel is one thread's way to it. A format stacks on the channels of the files below it.
// Offsets and sizes are in bytes, multiples of the logical block size and inside the image: the caller has checked
// them. Image: main thread, before lock-down; its geometry is known when its channels are open, and then immutable.
// Channel: the thread that owns its ring.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "device-procs/common/block/io_ring.h"
#include "device-procs/common/block/offload.h"
#include "device-procs/common/block/task.h"
#include "ipc/result.h"

namespace bulkhead::device {

struct BlockGeometry {
  uint64_t size_bytes = 0;    // a multiple of the logical block size
  uint64_t stored_bytes = 0;  // of an image's file: what it takes up, without its holes
  uint32_t logical_block_bytes = 512;
  uint32_t physical_block_bytes = 4096;  // what writes are best aligned to; a multiple of the logical size
  bool read_only = false;
};

// What a piece of an image is, as far as its tables or its file system tell.
struct BlockExtent {
  uint64_t size_bytes = 0;
  bool zero = false;                    // reads as zeroes, and nothing has to be read to know it
  bool data = false;                    // its bytes are stored in this image
  bool compressed = false;              // data of a compressed cluster
  bool backing = false;                 // neither: what the image below says
  std::optional<uint64_t> file_offset;  // of uncompressed data, and of space that is kept for zeroes
};

class BlockCompletion {
 public:
  // `error` is 0 or an errno value. On the channel's thread, possibly inside the call that started the work.
  virtual void Completed(int error) = 0;

 protected:
  ~BlockCompletion() = default;
};

class BlockChannel {
 public:
  virtual ~BlockChannel() = default;

  // Reads what the file says of itself, which is hostile: after lock-down, before anything else is asked. An error is
  // one line for the user.
  virtual Task<Result<void>> Open() { co_return Result<void>(); }

  // Each call completes `done` exactly once; until then `done` and the memory that the vectors name stay valid (the
  // vectors themselves are copied). The memory may be the guest's and change meanwhile. A channel is destroyed with
  // nothing outstanding.
  virtual void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) = 0;
  virtual void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) = 0;
  // Makes every write that completed before the call durable.
  virtual void Flush(BlockCompletion& done) = 0;
  // The range's contents are no longer wanted. A hint: where the image cannot give space back, nothing happens.
  virtual void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) = 0;
  // The range reads as zeroes; with `unmap` the image may give its space back.
  virtual void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) = 0;

  // Makes room for writes that will come, past the end too: a hint, which costs less than each of them extending the
  // file.
  virtual void Reserve(uint64_t /*offset*/, uint64_t /*size_bytes*/, BlockCompletion& done) { done.Completed(0); }

  // What the image is at `offset`: an extent of at most `size_bytes`, which is not 0.
  virtual Task<Result<BlockExtent>> Map(uint64_t offset, uint64_t size_bytes) {
    (void)offset;
    co_return BlockExtent{.size_bytes = size_bytes, .zero = false, .data = true, .file_offset = {}};
  }
  // The last call, with nothing outstanding: makes everything durable and leaves the file as one that is not in use.
  virtual Task<Result<void>> Close() { co_return Result<void>(); }
};

class BlockImage {
 public:
  virtual ~BlockImage() = default;

  // Valid once one channel is open.
  virtual const BlockGeometry& geometry() const = 0;
  // How many channels it can have; where that is 1, one thread serves the whole disk.
  virtual unsigned max_channels() const = 0;
  // Adds the image's files to `ring`, which is not yet enabled. What takes long is computed by `offload`. Throws
  // FatalError. The image and both of these outlive the channel.
  virtual std::unique_ptr<BlockChannel> OpenChannel(IoRing& ring, Offload& offload) = 0;
};

}  // namespace bulkhead::device
