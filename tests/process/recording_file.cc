// SPDX-License-Identifier: Apache-2.0
#include "tests/process/recording_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "ipc/result.h"

namespace bulkhead::test {
namespace {

constexpr uint64_t kFile = FUSE_ROOT_ID + 1;
constexpr const char* kName = "image";
constexpr uint32_t kMaxWrite = 1 << 20;
constexpr size_t kMostWaiting = 8;
// Since Linux 6.2, whose headers Debian 12 does not have: writes that do not make the file longer come side by side.
constexpr uint32_t kParallelDirectWrites = 1 << 6;

template <typename T>
std::vector<std::byte> BytesOf(const T& value) {
  const auto* start = reinterpret_cast<const std::byte*>(&value);
  return {start, start + sizeof value};
}

template <typename T>
T From(std::span<const std::byte> body) {
  T value{};
  std::memcpy(&value, body.data(), std::min(body.size(), sizeof value));
  return value;
}

void Configure(const OwnFd& context, unsigned command, const char* key, const char* value) {
  if (::fsconfig(context.get(), command, key, value, 0) != 0) ThrowErrno(std::string("configure FUSE: ") + key);
}

// A file system that is mounted nowhere.
OwnFd MountDetached(const OwnFd& fuse) {
  const OwnFd context(::fsopen("fuse", FSOPEN_CLOEXEC));
  if (!context.valid()) ThrowErrno("open a FUSE file system");
  Configure(context, FSCONFIG_SET_STRING, "fd", std::to_string(fuse.get()).c_str());
  Configure(context, FSCONFIG_SET_STRING, "rootmode", "40000");
  Configure(context, FSCONFIG_SET_STRING, "user_id", "0");
  Configure(context, FSCONFIG_SET_STRING, "group_id", "0");
  Configure(context, FSCONFIG_SET_FLAG, "allow_other", nullptr);
  Configure(context, FSCONFIG_CMD_CREATE, nullptr, nullptr);
  OwnFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount.valid()) ThrowErrno("mount FUSE");
  return mount;
}

}  // namespace

bool RecordingFile::IsPossible() {
  return ::geteuid() == 0 && ::access("/dev/fuse", R_OK | W_OK) == 0 && OwnFd(::fsopen("fuse", FSOPEN_CLOEXEC)).valid();
}

RecordingFile::RecordingFile(std::vector<std::byte> bytes, uint64_t seed)
    : fuse_(::open("/dev/fuse", O_RDWR | O_CLOEXEC)),
      stop_(::eventfd(0, EFD_CLOEXEC)),
      bytes_(std::move(bytes)),
      random_(seed),
      buffer_(kMaxWrite + 4096) {
  if (!fuse_.valid()) ThrowErrno("open /dev/fuse");
  mount_ = MountDetached(fuse_);
  thread_ = std::thread([this] { Serve(); });
}

RecordingFile::~RecordingFile() {
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  thread_.join();
}

OwnFd RecordingFile::Open(int flags) const {
  OwnFd file(::openat(mount_.get(), kName, flags | O_CLOEXEC));
  if (!file.valid()) ThrowErrno("open the recording file");
  return file;
}

std::vector<device::test::WriteLog::Period> RecordingFile::TakePeriods() {
  const std::scoped_lock lock(mutex_);
  return log_.Take();
}

std::vector<std::byte> RecordingFile::bytes() const {
  const std::scoped_lock lock(mutex_);
  return bytes_;
}

void RecordingFile::SetFaults(Fault fault, bool ends_early) {
  const std::scoped_lock lock(mutex_);
  fault_ = std::move(fault);
  ends_early_ = ends_early;
}

void RecordingFile::Serve() {
  for (;;) {
    std::array<pollfd, 2> events{pollfd{fuse_.get(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
    ::poll(events.data(), events.size(), waiting_.empty() ? -1 : 0);
    if (events[1].revents != 0) return;
    const bool more = (events[0].revents & POLLIN) != 0 && waiting_.size() < kMostWaiting;
    if (more && (waiting_.empty() || random_() % 4 != 0)) {
      Receive();
    } else if (!waiting_.empty()) {
      CarryOutOne();
    }
  }
}

void RecordingFile::Receive() {
  const ssize_t size = ::read(fuse_.get(), buffer_.data(), buffer_.size());
  if (size < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
  const std::span<const std::byte> request(buffer_.data(), static_cast<size_t>(size));
  const auto header = From<fuse_in_header>(request);
  if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET || header.opcode == FUSE_INTERRUPT) return;
  if (!Answer(header, request.subspan(sizeof header))) Send({header.unique, ENOSYS});
}

bool RecordingFile::Answer(const fuse_in_header& header, std::span<const std::byte> body) {
  const uint64_t unique = header.unique;
  switch (header.opcode) {
    case FUSE_INIT: {
      fuse_init_out out{};
      out.major = FUSE_KERNEL_VERSION;
      out.minor = std::min<uint32_t>(FUSE_KERNEL_MINOR_VERSION, From<fuse_init_in>(body).minor);
      out.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES;
      out.max_background = 64;
      out.congestion_threshold = 64;
      out.max_write = kMaxWrite;
      out.time_gran = 1;
      out.max_pages = kMaxWrite / 4096;
      Send({unique, 0, BytesOf(out)});
      return true;
    }
    case FUSE_LOOKUP: {
      fuse_entry_out out{};
      out.nodeid = kFile;
      out.attr = Attributes(kFile);
      const bool is_it = std::strcmp(reinterpret_cast<const char*>(body.data()), kName) == 0;
      Send(is_it ? Reply{unique, 0, BytesOf(out)} : Reply{unique, ENOENT});
      return true;
    }
    case FUSE_GETATTR: {
      fuse_attr_out out{};
      out.attr = Attributes(header.nodeid);
      Send({unique, 0, BytesOf(out)});
      return true;
    }
    case FUSE_OPEN: {
      fuse_open_out out{};
      out.open_flags = FOPEN_DIRECT_IO | kParallelDirectWrites;
      Send({unique, 0, BytesOf(out)});
      return true;
    }
    case FUSE_RELEASE:
      Send({unique});
      return true;
    case FUSE_READ:
      waiting_.push_back([this, unique, asked = From<fuse_read_in>(body)] { return Read(unique, asked); });
      return true;
    case FUSE_WRITE: {
      const auto asked = From<fuse_write_in>(body);
      const auto data = body.subspan(sizeof asked, asked.size);
      waiting_.push_back([this, unique, asked, written = std::vector(data.begin(), data.end())]() mutable {
        return Write(unique, asked, std::move(written));
      });
      return true;
    }
    case FUSE_FALLOCATE:
      waiting_.push_back([this, unique, asked = From<fuse_fallocate_in>(body)] {
        return Reply{unique, Allocate(asked)};
      });
      return true;
    case FUSE_FSYNC:
      waiting_.push_back([this, unique, promised = log_.next_number()] { return Flush(unique, promised); });
      return true;
    default:
      return false;
  }
}

void RecordingFile::CarryOutOne() {
  const auto which = waiting_.begin() + static_cast<ptrdiff_t>(random_() % waiting_.size());
  const auto work = std::move(*which);
  waiting_.erase(which);
  Send(work());
}

void RecordingFile::Send(const Reply& reply) const {
  const bool has_payload = reply.error == 0 && !reply.payload.empty();
  fuse_out_header header{};
  header.unique = reply.unique;
  header.error = -reply.error;
  header.len = static_cast<uint32_t>(sizeof header + (has_payload ? reply.payload.size() : 0));
  std::array<iovec, 2> parts{iovec{&header, sizeof header},
                             iovec{const_cast<std::byte*>(reply.payload.data()), reply.payload.size()}};
  // Whoever asked may have been killed.
  const ssize_t sent = ::writev(fuse_.get(), parts.data(), has_payload ? 2 : 1);
  EXPECT_TRUE(sent >= 0 || errno == ENOENT) << "answer a FUSE request";
}

RecordingFile::Reply RecordingFile::Read(uint64_t unique, const fuse_read_in& asked) {
  const std::scoped_lock lock(mutex_);
  if (const int error = FaultOf(Access::kRead, asked.offset, asked.size); error != 0) return {unique, error};
  const uint64_t from = std::min<uint64_t>(asked.offset, bytes_.size());
  const uint64_t to = std::min<uint64_t>(from + asked.size, bytes_.size());
  const auto start = bytes_.begin();
  return {unique, 0, {start + static_cast<ptrdiff_t>(from), start + static_cast<ptrdiff_t>(to)}};
}

RecordingFile::Reply RecordingFile::Write(uint64_t unique, const fuse_write_in& asked, std::vector<std::byte> written) {
  fuse_write_out out{};
  {
    const std::scoped_lock lock(mutex_);
    if (const int error = FaultOf(Access::kChange, asked.offset, asked.size); error != 0) return {unique, error};
    out.size = Part(asked.size);
  }
  written.resize(out.size);
  return {unique, Change(asked.offset, std::move(written)), BytesOf(out)};
}

RecordingFile::Reply RecordingFile::Flush(uint64_t unique, uint64_t promised) {
  const std::scoped_lock lock(mutex_);
  if (const int error = FaultOf(Access::kFlush, 0, 0); error != 0) return {unique, error};
  log_.Flushed(promised);
  return {unique};
}

int RecordingFile::FaultOf(Access access, uint64_t offset, uint64_t size_bytes) const {
  return fault_ ? fault_(access, offset, size_bytes) : 0;
}

uint32_t RecordingFile::Part(uint32_t size_bytes) {
  constexpr uint32_t kBlockBytes = 512;
  const uint32_t blocks = size_bytes / kBlockBytes;
  if (!ends_early_ || blocks < 2 || random_() % 2 == 0) return size_bytes;
  return static_cast<uint32_t>(1 + random_() % (blocks - 1)) * kBlockBytes;
}

int RecordingFile::Allocate(const fuse_fallocate_in& asked) {
  {
    const std::scoped_lock lock(mutex_);
    if (const int error = FaultOf(Access::kChange, asked.offset, asked.length); error != 0) return error;
  }
  const bool keeps_size = (asked.mode & FALLOC_FL_KEEP_SIZE) != 0;
  const uint64_t size = bytes_.size();
  uint64_t from = asked.offset;
  uint64_t to = asked.offset + asked.length;
  if (keeps_size) to = std::min(to, size);
  switch (asked.mode & ~static_cast<uint32_t>(FALLOC_FL_KEEP_SIZE)) {
    case 0:
      from = std::max(from, size);
      break;
    case FALLOC_FL_PUNCH_HOLE:
    case FALLOC_FL_ZERO_RANGE:
      break;
    default:
      return EOPNOTSUPP;
  }
  return from < to ? Change(from, std::vector<std::byte>(to - from)) : 0;
}

int RecordingFile::Change(uint64_t offset, std::vector<std::byte> written) {
  const std::scoped_lock lock(mutex_);
  device::test::WriteLog::ApplyTo(bytes_, offset, written);
  log_.Add(offset, std::move(written));
  return 0;
}

fuse_attr RecordingFile::Attributes(uint64_t node) const {
  const std::scoped_lock lock(mutex_);
  fuse_attr attributes{};
  attributes.ino = node;
  attributes.mode = node == kFile ? S_IFREG | 0600 : S_IFDIR | 0700;
  attributes.nlink = 1;
  attributes.size = node == kFile ? bytes_.size() : 0;
  attributes.blocks = attributes.size / 512;
  attributes.blksize = 4096;
  return attributes;
}

}  // namespace bulkhead::test
