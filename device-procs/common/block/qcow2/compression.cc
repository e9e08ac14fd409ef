// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/block/qcow2/compression.h"

#include <zlib.h>
#include <zstd.h>

namespace bulkhead::qcow2 {
namespace {

// Negative: deflate without a header. Writers use a window of 4 KiB, and what a larger one needs is not much more.
constexpr int kDeflateWindow = -12;
constexpr int kInflateWindow = -15;
constexpr int kDeflateMemory = 8;
// The largest cluster; a frame that wants a larger window is none of ours.
constexpr int kZstdWindowLog = kMaxClusterBits;

}  // namespace

struct Unpacker::Streams {
  z_stream inflate{};
  bool inflate_ready = false;
  ZSTD_DCtx* zstd = nullptr;
};

Unpacker::Unpacker() : streams_(std::make_unique<Streams>()) {}

Unpacker::~Unpacker() {
  if (streams_->inflate_ready) ::inflateEnd(&streams_->inflate);
  ::ZSTD_freeDCtx(streams_->zstd);
}

Result<void> Unpacker::Unpack(Compression kind, std::span<const std::byte> from, std::span<std::byte> to) {
  return kind == Compression::kZstd ? Zstd(from, to) : Inflate(from, to);
}

Result<void> Unpacker::Inflate(std::span<const std::byte> from, std::span<std::byte> to) {
  z_stream& stream = streams_->inflate;
  if (!streams_->inflate_ready) {
    if (::inflateInit2(&stream, kInflateWindow) != Z_OK) return Error{ENOMEM, "unpacking: out of memory"};
    streams_->inflate_ready = true;
  } else {
    ::inflateReset(&stream);
  }
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(to.data());
  stream.avail_out = static_cast<uInt>(to.size());
  const int result = ::inflate(&stream, Z_FINISH);
  // The end of the cluster comes before, with or after the end of the stream.
  const bool ended = result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK;
  if (!ended || stream.avail_out != 0) return Error{EIO, "a compressed cluster cannot be unpacked"};
  return {};
}

Result<void> Unpacker::Zstd(std::span<const std::byte> from, std::span<std::byte> to) {
  if (streams_->zstd == nullptr) {
    streams_->zstd = ::ZSTD_createDCtx();
    if (streams_->zstd == nullptr) return Error{ENOMEM, "unpacking: out of memory"};
    ::ZSTD_DCtx_setParameter(streams_->zstd, ZSTD_d_windowLogMax, kZstdWindowLog);
  }
  ::ZSTD_DCtx_reset(streams_->zstd, ZSTD_reset_session_only);
  ZSTD_inBuffer in{from.data(), from.size(), 0};
  ZSTD_outBuffer out{to.data(), to.size(), 0};
  while (out.pos < out.size) {
    const size_t before = in.pos + out.pos;
    const size_t result = ::ZSTD_decompressStream(streams_->zstd, &out, &in);
    if (::ZSTD_isError(result) != 0 || in.pos + out.pos == before) {
      return Error{EIO, "a compressed cluster cannot be unpacked"};
    }
  }
  return {};
}

struct Packer::Stream {
  Compression kind;
  z_stream deflate{};
  ZSTD_CCtx* zstd = nullptr;
};

Packer::Packer(Compression kind) : stream_(std::make_unique<Stream>()) { stream_->kind = kind; }

Packer::~Packer() {
  if (stream_->deflate.state != nullptr) ::deflateEnd(&stream_->deflate);
  ::ZSTD_freeCCtx(stream_->zstd);
}

Result<size_t> Packer::Pack(std::span<const std::byte> from, std::span<std::byte> to) {
  const Error no_memory{ENOMEM, "compressing: out of memory"};
  if (stream_->kind == Compression::kZstd) {
    if (stream_->zstd == nullptr) stream_->zstd = ::ZSTD_createCCtx();
    if (stream_->zstd == nullptr) return no_memory;
    const size_t size =
        ::ZSTD_compressCCtx(stream_->zstd, to.data(), to.size(), from.data(), from.size(), ZSTD_CLEVEL_DEFAULT);
    return ::ZSTD_isError(size) != 0 ? size_t{0} : size;
  }
  z_stream& deflate = stream_->deflate;
  if (deflate.state == nullptr) {
    const int result =
        ::deflateInit2(&deflate, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kDeflateWindow, kDeflateMemory, Z_DEFAULT_STRATEGY);
    if (result != Z_OK) return no_memory;
  } else {
    ::deflateReset(&deflate);
  }
  deflate.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
  deflate.avail_in = static_cast<uInt>(from.size());
  deflate.next_out = reinterpret_cast<Bytef*>(to.data());
  deflate.avail_out = static_cast<uInt>(to.size());
  return ::deflate(&deflate, Z_FINISH) == Z_STREAM_END ? to.size() - deflate.avail_out : size_t{0};
}

}  // namespace bulkhead::qcow2
