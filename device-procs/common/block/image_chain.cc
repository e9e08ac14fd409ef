// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/image_chain.h"

#include <algorithm>
#include <optional>

#include "device-procs/common/block/block_task.h"
#include "device-procs/common/block/qcow1_channel.h"
#include "device-procs/common/block/qcow2/buffer.h"
#include "device-procs/common/block/qcow2/header.h"
#include "device-procs/common/block/qcow2/qcow2_channel.h"
#include "device-procs/common/block/qcow2/snapshots.h"

namespace bulkhead::device {
namespace {

constexpr size_t kProbeBytes = 512;

}  // namespace

struct ImageChain::Layer {
  std::unique_ptr<RawImage> file;
  ImageFormat format;
  bool block_device;
  std::string name;
  uint64_t made_bytes = 0;  // what became of it since it was opened

  BlockGeometry FileGeometry() const {
    BlockGeometry geometry = file->geometry();
    geometry.size_bytes = std::max(geometry.size_bytes, made_bytes);
    return geometry;
  }
};

// Forwards to the topmost format; below it the channels of all files, and the formats on them.
class ImageChain::Channel final : public BlockChannel {
 public:
  Channel(ImageChain& image, IoRing& ring, Offload& offload) : image_(image), offload_(offload) {
    for (const auto& layer : image.layers_) files_.push_back(layer->file->OpenChannel(ring, offload));
    top_ = files_[0].get();
    image.file_ = top_;
    if (!image.options_.tables.empty()) store_.emplace(image.options_.tables);
  }

  // From the bottom up: each needs to know how large what is below it is.
  Task<Result<void>> Open() override {
    if (image_.options_.successor && !image_.layers_[0]->file->geometry().read_only) {
      // What the dead process had the disk do past the page cache may not have ended with it: file systems let that
      // end before they give a file room. There is room for its first bytes.
      (void)co_await ReserveIn(*files_[0], 0, kProbeBytes);
    }
    qcow2::Backing below;
    for (size_t i = image_.IsPlain() ? 0 : image_.layers_.size(); i-- != 0;) {
      Result<void> opened = co_await OpenLayer(i, below);
      if (!opened.ok()) co_return Named(i, opened.error());
    }
    if (!image_.options_.snapshot.empty() && image_.qcow2_ == nullptr) {
      co_return Named(0, {ENOTSUP, "images of this format have no snapshots"});
    }
    co_return Result<void>();
  }
  void Read(uint64_t offset, std::span<const iovec> to, BlockCompletion& done) override {
    top_->Read(offset, to, done);
  }
  void Write(uint64_t offset, std::span<const iovec> from, BlockCompletion& done) override {
    top_->Write(offset, from, done);
  }
  void Flush(BlockCompletion& done) override { top_->Flush(done); }
  void Discard(uint64_t offset, uint64_t size_bytes, BlockCompletion& done) override {
    top_->Discard(offset, size_bytes, done);
  }
  void WriteZeroes(uint64_t offset, uint64_t size_bytes, bool unmap, BlockCompletion& done) override {
    top_->WriteZeroes(offset, size_bytes, unmap, done);
  }
  Task<Result<BlockExtent>> Map(uint64_t offset, uint64_t size_bytes) override { return top_->Map(offset, size_bytes); }
  Task<Result<void>> Close() override { return top_->Close(); }

 private:
  Error Named(size_t index, const Error& error) const {
    return {error.code, "'" + image_.layers_[index]->name + "': " + error.message};
  }

  // Opens one layer over `below`, which becomes what the next one is over.
  Task<Result<void>> OpenLayer(size_t index, qcow2::Backing& below) {
    Layer& layer = *image_.layers_[index];
    BlockChannel& file = *files_[index];
    if (layer.format == ImageFormat::kDetect) {
      Result<void> detected = co_await Detect(layer, file);
      if (!detected.ok()) co_return detected;
    }
    uint64_t size_bytes = layer.file->geometry().size_bytes;
    BlockChannel* channel = &file;
    if (layer.format == ImageFormat::kRaw) {
      if (below.channel != nullptr) {
        co_return Error{EINVAL, "a raw image has no backing file, but '" + image_.layers_[index + 1]->name +
                                    "' is given as one; leave it out, or say which format the image has"};
      }
    } else if (layer.format == ImageFormat::kQcow) {
      Result<qcow1::Qcow1Channel*> opened = co_await OpenQcow1(layer, file, below);
      if (!opened.ok()) co_return opened.error();
      channel = *opened;
      size_bytes = (*opened)->header().size_bytes;
    } else {
      Result<qcow2::Qcow2Channel*> opened =
          co_await OpenQcow2(layer, file, below, index == 0 && store_ ? &*store_ : nullptr);
      if (!opened.ok()) co_return opened.error();
      channel = *opened;
      if (index == 0) image_.qcow2_ = *opened;
      if (index == 0 && !image_.options_.snapshot.empty()) {
        Result<void> shown = co_await qcow2::ShowSnapshot(**opened, image_.options_.snapshot);
        if (!shown.ok()) co_return shown;
      }
      size_bytes = (*opened)->header().size_bytes;
    }
    below = {channel, size_bytes};
    if (index != 0) co_return Result<void>();
    top_ = channel;
    image_.geometry_ = layer.file->geometry();
    image_.geometry_.size_bytes = size_bytes;
    co_return Result<void>();
  }

  Task<Result<qcow2::Qcow2Channel*>> OpenQcow2(Layer& layer, BlockChannel& file, qcow2::Backing below,
                                               qcow2::TableStore* store) {
    qcow2::OpenOptions options;
    options.block_device = layer.block_device;
    options.purpose = image_.options_.purpose;
    options.backing = below;
    options.store = store;
    if (image_.options_.log) {
      options.log = [log = image_.options_.log, name = layer.name](const std::string& line) {
        log("'" + name + "': " + line);
      };
    }
    auto format = std::make_unique<qcow2::Qcow2Channel>(file, layer.FileGeometry(), offload_, std::move(options));
    Result<void> opened = co_await format->Open();
    if (!opened.ok()) co_return opened.error();
    if (auto checked = CheckBacking(format->header().backing_file, below); !checked.ok()) co_return checked.error();
    qcow2::Qcow2Channel* channel = format.get();
    formats_.push_back(std::move(format));
    co_return channel;
  }

  Task<Result<qcow1::Qcow1Channel*>> OpenQcow1(Layer& layer, BlockChannel& file, qcow2::Backing below) {
    if (!layer.file->geometry().read_only) {
      co_return Error{EROFS,
                      "images of qcow version 1 can only be read; open it read-only, or convert it with `bulkhead img "
                      "convert`"};
    }
    auto format = std::make_unique<qcow1::Qcow1Channel>(file, layer.file->geometry(), offload_, below);
    Result<void> opened = co_await format->Open();
    if (!opened.ok()) co_return opened.error();
    if (auto checked = CheckBacking(format->backing_file(), below); !checked.ok()) co_return checked.error();
    qcow1::Qcow1Channel* channel = format.get();
    formats_.push_back(std::move(format));
    co_return channel;
  }

  // What the header names against what was given.
  Result<void> CheckBacking(const std::string& named, const qcow2::Backing& below) const {
    if (!named.empty() && below.channel == nullptr && !image_.options_.ignore_backing) {
      return Error{EINVAL, "its header names the backing file '" + Printable(named) +
                               "', which is not opened because a header says so; " + image_.options_.backing_hint};
    }
    if (named.empty() && below.channel != nullptr) {
      return Error{EINVAL, "its header names no backing file, but one is given"};
    }
    return {};
  }

  Task<Result<void>> Detect(Layer& layer, BlockChannel& file) {
    const qcow2::Buffer first(kProbeBytes);
    const int error = co_await ReadFrom(file, 0, first.data(), first.size());
    if (error != 0) co_return ErrnoError(error, "reading its first bytes");
    layer.format = ImageFormat::kRaw;
    if (qcow2::LooksLikeQcow2(first.span())) layer.format = ImageFormat::kQcow2;
    if (qcow1::LooksLikeQcow1(first.span())) layer.format = ImageFormat::kQcow;
    co_return Result<void>();
  }

  static std::string Printable(std::string text) {
    for (char& c : text) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    }
    return text;
  }

  ImageChain& image_;
  Offload& offload_;
  std::optional<qcow2::TableStore> store_;
  std::vector<std::unique_ptr<BlockChannel>> files_;
  std::vector<std::unique_ptr<BlockChannel>> formats_;  // they use the files' channels
  BlockChannel* top_;
};

ImageChain::ImageChain(std::vector<ImageFile> files, ImageChainOptions options) : options_(std::move(options)) {
  if (files.empty()) throw FatalError("a disk without an image");
  const bool plain = files.size() == 1 && files[0].format == ImageFormat::kRaw;
  for (ImageFile& file : files) {
    auto layer = std::make_unique<Layer>();
    layer->file = OpenRawImage(std::move(file.file), {.read_only = file.read_only || !layers_.empty(),
                                                      .direct_io = file.direct_io,
                                                      .past_end = plain ? options_.past_end : PastEnd::kZeroes});
    layer->format = file.format;
    layer->block_device = file.block_device;
    layer->name = std::move(file.name);
    layers_.push_back(std::move(layer));
  }
  if (plain) geometry_ = layers_[0]->file->geometry();
}

ImageChain::~ImageChain() = default;

bool ImageChain::IsPlain() const { return layers_.size() == 1 && layers_[0]->format == ImageFormat::kRaw; }

const BlockGeometry& ImageChain::geometry() const { return geometry_; }

void ImageChain::SetFileBytes(uint64_t size_bytes) { layers_[0]->made_bytes = size_bytes; }

ImageFormat ImageChain::format() const { return layers_[0]->format; }

unsigned ImageChain::max_channels() const { return IsPlain() ? layers_[0]->file->max_channels() : 1; }

std::unique_ptr<BlockChannel> ImageChain::OpenChannel(IoRing& ring, Offload& offload) {
  return std::make_unique<Channel>(*this, ring, offload);
}

}  // namespace bulkhead::device
