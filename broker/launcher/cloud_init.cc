// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/cloud_init.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "broker/launcher/fat_image.h"

namespace bulkhead::launcher {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{16} << 20;

std::string ReadAll(const OwnFd& file, const std::string& subject) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) ThrowErrno(subject);
  const auto size_bytes = static_cast<uint64_t>(info.st_size);
  if (size_bytes > kMaxFileBytes) throw FatalError(subject + ": is larger than 16 MiB", EFBIG);
  std::string contents(size_bytes, '\0');
  for (size_t at = 0; at < contents.size();) {
    const ssize_t count = ::pread(file.get(), contents.data() + at, contents.size() - at, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) ThrowErrno(subject);
    if (count == 0) throw FatalError(subject + ": became shorter while it was read");
    at += static_cast<size_t>(count);
  }
  return contents;
}

std::vector<FatFile> ReadFiles(const CloudInitOption& option) {
  std::vector<FatFile> files;
  for (const std::string_view name : kCloudInitFiles) {
    const auto given = option.files.find(std::string(name));
    std::string path = given == option.files.end() ? "" : given->second;
    if (path.empty() && !option.directory.empty()) {
      path = option.directory + "/" + std::string(name);
      // Only user-data must be there.
      if (name != "user-data" && ::access(path.c_str(), F_OK) != 0 && errno == ENOENT) path.clear();
    }
    if (path.empty()) continue;
    const std::string what = fmt::format("cloud-init's {}", name);
    files.push_back({std::string(name), ReadAll(OpenSource(what, path), what + " '" + path + "'")});
  }
  return files;
}

// FNV-1a, 64 bits: whether anything changed, not whether somebody meant harm.
class Digest {
 public:
  void Add(std::string_view text) {
    for (const char each : text) value_ = (value_ ^ static_cast<uint8_t>(each)) * 0x100000001B3;
    value_ = (value_ ^ 0x100) * 0x100000001B3;  // no byte: texts do not run into each other
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325;
};

// cloud-init sets a guest up once for each instance.
std::string MakeMetaData(const CloudInitOption& option, const std::vector<FatFile>& files) {
  Digest digest;
  digest.Add(option.hostname);
  for (const FatFile& file : files) {
    digest.Add(file.name);
    digest.Add(file.contents);
  }
  std::string text = fmt::format("instance-id: bulkhead-{:016x}\n", digest.value());
  if (!option.hostname.empty()) text += "local-hostname: " + option.hostname + "\n";
  return text;
}

OwnFd MakeFile(const FatImage& image) {
  const std::string subject = "the disk for cloud-init";
  const OwnFd memory(::memfd_create("cloud-init", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid() || ::ftruncate(memory.get(), static_cast<off_t>(image.size_bytes)) != 0) ThrowErrno(subject);
  for (const FatPiece& piece : image.pieces) {
    const ssize_t count =
        ::pwrite(memory.get(), piece.bytes.data(), piece.bytes.size(), static_cast<off_t>(piece.offset_bytes));
    if (count != static_cast<ssize_t>(piece.bytes.size())) ThrowErrno(subject);
  }
  if (::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    ThrowErrno(subject);
  }
  // Its process gets a descriptor that is for reading only.
  OwnFd file(::open(fmt::format("/proc/self/fd/{}", memory.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) ThrowErrno(subject);
  return file;
}

}  // namespace

OpenDisk MakeCloudInitDisk(const CloudInitOption& option) {
  std::vector<FatFile> files = ReadFiles(option);
  const bool meta_data =
      std::any_of(files.begin(), files.end(), [](const FatFile& file) { return file.name == "meta-data"; });
  if (!meta_data) files.push_back({"meta-data", MakeMetaData(option, files)});
  OpenDisk disk;
  disk.image.file = MakeFile(MakeFatImage("cidata", files));
  return disk;
}

}  // namespace bulkhead::launcher
