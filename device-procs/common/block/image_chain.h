// SPDX-License-Identifier: Apache-2.0
// An image file with the files below it, as one disk: each of its own format, every lower one read only. Which files
// they are, and of which format, was decided outside; what the headers say of it is only compared.
// Image: main thread, before lock-down; it looks at the files' sizes, not at their bytes. Channels: see block_image.h.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/block/qcow2/purpose.h"
#include "device-procs/common/block/raw_image.h"
#include "ipc/fd.h"

namespace bulkhead::qcow2 {
class Qcow2Channel;
}

namespace bulkhead::device {

enum class ImageFormat : uint8_t {
  kRaw,
  kQcow2,   // versions 2 and 3
  kQcow,    // version 1: read only
  kDetect,  // what the first bytes say; only where nobody but the user wrote them or where raw data do no harm
};

struct ImageFile {
  OwnFd file;
  ImageFormat format = ImageFormat::kRaw;
  bool read_only = false;
  bool direct_io = false;  // opened with O_DIRECT
  bool block_device = false;
  std::string name;  // for messages
};

struct ImageChainOptions {
  // The header may name a file below that was not given (`bulkhead img info` and the like look at one file alone).
  bool ignore_backing = false;
  std::string snapshot = {};  // the topmost, opened read-only, is shown as it was in this one, by id or name
  // What the user can do where a header names a file that was not given.
  std::string backing_hint = "give it with backing=FILE, or backing-from-header if you trust whoever wrote the image";
  // What a raw image gives past its end, and so whether its last part of a block counts.
  PastEnd past_end = PastEnd::kError;
  qcow2::Purpose purpose = qcow2::Purpose::kUse;
  // A journal's room for the tables of the topmost (Journal::tables), where a successor finds them; empty: none.
  std::span<std::byte> tables = {};
  // Takes the place of a process that was killed.
  bool successor = false;
  std::function<void(const std::string&)> log;  // channel's thread; what a request's error does not tell
};

class ImageChain final : public BlockImage {
 public:
  // Topmost first. Throws FatalError.
  ImageChain(std::vector<ImageFile> files, ImageChainOptions options);
  ~ImageChain() override;

  const BlockGeometry& geometry() const override;
  unsigned max_channels() const override;
  std::unique_ptr<BlockChannel> OpenChannel(IoRing& ring, Offload& offload) override;

  // The topmost image itself, where it is qcow2: once the channel is open, on its thread. Null for others.
  qcow2::Qcow2Channel* qcow2() const { return qcow2_; }
  ImageFormat format() const;  // of the topmost, once the channel is open
  // The topmost file itself, before the channel is open: to make an image in it, which then reaches so far.
  BlockChannel& file() const { return *file_; }
  void SetFileBytes(uint64_t size_bytes);

 private:
  struct Layer;
  class Channel;

  // Nothing but one raw file.
  bool IsPlain() const;

  std::vector<std::unique_ptr<Layer>> layers_;
  const ImageChainOptions options_;
  BlockGeometry geometry_;
  qcow2::Qcow2Channel* qcow2_ = nullptr;
  BlockChannel* file_ = nullptr;
};

}  // namespace bulkhead::device
