// SPDX-License-Identifier: Apache-2.0
// `bulkhead img`: each job opens the user's files, has a sandboxed process work on them, and says what came of it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "broker/launcher/commands.h"
#include "broker/launcher/img_output.h"
#include "broker/launcher/img_session.h"

namespace bulkhead::launcher {
namespace {

using Job = ImgOptions::Job;

constexpr uint64_t kSectorBytes = 512;
// As qemu-img's.
constexpr int kCheckCorrupt = 2;
constexpr int kCheckLeaks = 3;
constexpr int kCheckNotSupported = 63;
constexpr int kDiffer = 1;

uint64_t DiskBytes(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * kSectorBytes : 0;
}

bool ShowsProgress(const ImgOptions& options) {
  return !options.quiet && (options.progress || ::isatty(STDERR_FILENO) != 0);
}

// A file that this command made goes away again unless all went well, also when a signal ends the command.
class NewFile {
 public:
  explicit NewFile(const std::string& path, bool made) {
    if (!made) return;
    path_ = ::strdup(path.c_str());
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, RemoveAndEnd);
  }
  ~NewFile() {
    if (path_ != nullptr) ::unlink(path_);
    Keep();
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void Keep() {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, SIG_DFL);
    std::free(std::exchange(path_, nullptr));
  }

 private:
  static void RemoveAndEnd(int number) {
    ::unlink(path_);
    ::_exit(128 + number);
  }

  static inline char* path_ = nullptr;  // a handler has nothing else to find it by
};

void SetLength(const OpenImage& image, const std::string& path, uint64_t size_bytes,
               ImgOptions::Preallocation preallocation) {
  if (image.block_device) return;
  const auto fail = [&](const char* what) { throw FatalError(ErrnoError(errno, "image '" + path + "': " + what)); };
  if (size_bytes > INT64_MAX || ::ftruncate(image.file.get(), static_cast<off_t>(size_bytes)) != 0) {
    fail("giving it its size");
  }
  const bool takes_space =
      preallocation == ImgOptions::Preallocation::kFalloc || preallocation == ImgOptions::Preallocation::kFull;
  if (takes_space && ::posix_fallocate(image.file.get(), 0, static_cast<off_t>(size_bytes)) != 0) {
    errno = ENOSPC;
    fail("allocating its space");
  }
}

void Fill(const ImgOptions& options, uint64_t size_bytes, control::ImageCreate::Builder out) {
  out.setVirtualBytes(size_bytes);
  out.setClusterBits(static_cast<uint8_t>(std::countr_zero(options.cluster_bytes)));
  out.setRefcountOrder(static_cast<uint8_t>(std::countr_zero(options.refcount_bits)));
  out.setVersion(static_cast<uint8_t>(options.version));
  out.setLazyRefcounts(options.lazy_refcounts);
  out.setZstd(options.zstd);
  out.setBackingFile(options.new_backing);
  out.setBackingFormat(options.new_backing_format);
  out.setPreallocation(static_cast<control::ImageCreate::Preallocation>(options.preallocation));
}

std::vector<Chain> One(Chain chain) {
  std::vector<Chain> chains;
  chains.push_back(std::move(chain));
  return chains;
}

std::vector<Chain> Two(Chain first, Chain second) {
  std::vector<Chain> chains = One(std::move(first));
  chains.push_back(std::move(second));
  return chains;
}

// What a file on its own is; `format` becomes what it was found to be.
uint64_t VirtualBytes(kj::AsyncIoContext& io, const std::string& path, ImgFormat format) {
  ImgSession session(io, One(OpenAlone(path, format, true, false)));
  return session.Wait(session.worker().infoRequest().send()).getInfo().getVirtualBytes();
}

// The size of the disk and the words of the header that go with a backing file.
uint64_t SizeOverBacking(kj::AsyncIoContext& io, ImgOptions& options) {
  if (options.new_backing.empty())
    throw UsageError("give a size, as in `bulkhead img create -f qcow2 " + options.file + " 10G`");
  return VirtualBytes(io, BesideImage(options.file, options.new_backing),
                      ParseImgFormat("-F", options.new_backing_format));
}

int Create(kj::AsyncIoContext& io, ImgOptions options) {
  if (!options.new_backing.empty() && !options.unsafe && options.size_bytes) (void)SizeOverBacking(io, options);
  uint64_t size_bytes = options.size_bytes ? *options.size_bytes : SizeOverBacking(io, options);
  size_bytes = (size_bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
  bool made = false;
  Chain chain;
  chain.alone = true;
  chain.files.push_back({options.file, options.format, false, MakeImageFile(options.file, made)});
  NewFile file(options.file, made);
  if (options.format == ImgFormat::kRaw) {
    SetLength(chain.files[0].image, options.file, size_bytes, options.preallocation);
  } else {
    ImgSession session(io, One(std::move(chain)));
    auto request = session.worker().createRequest();
    Fill(options, size_bytes, request.initOptions());
    session.Wait(request.send());
  }
  file.Keep();
  if (!options.quiet) {
    std::printf("Formatting '%s', fmt=%s size=%lu\n", options.file.c_str(),
                options.format == ImgFormat::kRaw ? "raw" : "qcow2", size_bytes);
  }
  return 0;
}

int Info(kj::AsyncIoContext& io, const ImgOptions& options) {
  ImgSession session(io, One(OpenAlone(options.file, options.format, true, !options.force_share)));
  const auto response = session.Wait(session.worker().infoRequest().send());
  const uint64_t disk_bytes = DiskBytes(options.file);
  if (options.json) {
    std::printf("%s\n", JsonInfo(options.file, disk_bytes, response.getInfo()).dump(4).c_str());
  } else {
    std::fputs(HumanInfo(options.file, disk_bytes, response.getInfo()).c_str(), stdout);
  }
  return 0;
}

int Check(kj::AsyncIoContext& io, const ImgOptions& options) {
  const bool repairs = options.repair != ImgOptions::Repair::kNone;
  Chain chain = OpenAlone(options.file, options.format, !repairs, !options.force_share);
  chain.for_check = true;
  ImgSession session(io, One(std::move(chain)));
  const auto info = session.Wait(session.worker().infoRequest().send());
  const auto format = info.getInfo().getFormat();
  if (format != control::ImageGrant::Format::QCOW2) {
    if (!options.quiet) std::printf("This image format does not support checks\n");
    return kCheckNotSupported;
  }
  auto request = session.worker().checkRequest();
  request.setRepair(static_cast<control::ImageCheck::Repair>(options.repair));
  const auto response = session.Wait(request.send());
  const auto report = response.getReport();
  if (options.json) {
    std::printf("%s\n", JsonCheck(options.file, FormatName(format), report).dump(4).c_str());
  } else if (!options.quiet) {
    std::fputs(HumanCheck(report, repairs).c_str(), stdout);
  }
  if (report.getCorruptions() > report.getCorruptionsFixed()) return kCheckCorrupt;
  return report.getLeaks() > report.getLeaksFixed() ? kCheckLeaks : 0;
}

// What becomes the file below `image`.
ImgOptions OverNewBacking(const ImgOptions& options, const std::string& image) {
  ImgOptions over = options;
  over.file = BesideImage(image, options.new_backing);
  over.format = ParseImgFormat("-F", options.new_backing_format);
  over.backing.clear();
  return over;
}

// What convert reads, one behind the other, and how large they are together.
std::vector<Chain> OpenSources(kj::AsyncIoContext& io, const ImgOptions& options, uint64_t& size_bytes) {
  std::vector<Chain> sources;
  ImgOptions source = options;
  const auto open = [&] {
    Chain chain = OpenChain(io, source, true);
    chain.snapshot = options.snapshot_name;
    return chain;
  };
  const auto add = [&] {
    sources.push_back(open());
    ImgSession session(io, One(open()));
    const uint64_t disk_bytes = session.Wait(session.worker().infoRequest().send()).getInfo().getVirtualBytes();
    if (disk_bytes > INT64_MAX - size_bytes) throw FatalError("together the disks are larger than any can be");
    size_bytes += disk_bytes;
  };
  add();
  for (const std::string& file : options.behind) {
    source.file = file;
    add();
  }
  return sources;
}

int Convert(kj::AsyncIoContext& io, const ImgOptions& options) {
  uint64_t size_bytes = 0;
  std::vector<Chain> chains = OpenSources(io, options, size_bytes);
  bool made = false;
  Chain target;
  target.alone = true;
  target.files.push_back(
      {options.other, options.other_format, false,
       options.no_create ? OpenImageFile(options.other, false, true) : MakeImageFile(options.other, made)});
  NewFile file(options.other, made);
  if (!options.new_backing.empty()) {
    target.alone = false;
    for (ChainFile& file : OpenChain(io, OverNewBacking(options, options.other), true).files) {
      target.files.push_back(std::move(file));
    }
  }
  const OpenImage& image = target.files[0].image;
  const bool raw = options.other_format == ImgFormat::kRaw;
  const bool fresh = !options.no_create && !image.block_device;
  if (raw && fresh) SetLength(image, options.other, size_bytes, options.preallocation);
  chains.push_back(std::move(target));
  ImgSession session(io, std::move(chains));
  auto request = session.worker().convertRequest();
  auto out = request.initOptions();
  if (!raw && !options.no_create) Fill(options, size_bytes, out.initCreate());
  out.setCompress(options.compress);
  out.setRequests(static_cast<uint16_t>(options.requests));
  out.setZeroRunBytes(static_cast<uint32_t>(options.zero_run_bytes));
  out.setTargetReadsZero(fresh || (!raw && !options.no_create));
  session.Wait(request.send(), ShowsProgress(options));
  file.Keep();
  return 0;
}

int Resize(kj::AsyncIoContext& io, const ImgOptions& options) {
  uint64_t size_bytes = *options.size_bytes;
  control::ImageGrant::Format format;
  uint64_t old_bytes = 0;
  {
    ImgSession session(io, One(OpenAlone(options.file, options.format, true, false)));
    const auto response = session.Wait(session.worker().infoRequest().send());
    format = response.getInfo().getFormat();
    old_bytes = response.getInfo().getVirtualBytes();
  }
  if (options.resize_sign > 0) size_bytes += old_bytes;
  if (options.resize_sign < 0) size_bytes = old_bytes - std::min(size_bytes, old_bytes);
  if (size_bytes == 0) throw FatalError("a disk of 0 bytes is none");
  if (size_bytes < old_bytes && !options.shrink) {
    throw FatalError("image '" + options.file +
                     "': making it smaller loses what lies beyond; add --shrink if you mean it");
  }
  const bool below = !options.backing.empty() || options.backing_from_header;
  Chain chain = below ? OpenChain(io, options, false) : OpenAlone(options.file, options.format, false, true);
  if (format == control::ImageGrant::Format::RAW) {
    SetLength(chain.files[0].image, options.file, size_bytes, ImgOptions::Preallocation::kOff);
  } else {
    ImgSession session(io, One(std::move(chain)));
    auto request = session.worker().resizeRequest();
    request.setVirtualBytes(size_bytes);
    request.setShrink(options.shrink);
    session.Wait(request.send());
  }
  if (!options.quiet) std::printf("Image resized.\n");
  return 0;
}

int Snapshot(kj::AsyncIoContext& io, const ImgOptions& options) {
  const bool lists = options.snapshot == ImgOptions::Snapshot::kList;
  ImgSession session(io, One(OpenAlone(options.file, options.format, lists, !(lists && options.force_share))));
  if (lists) {
    const auto response = session.Wait(session.worker().infoRequest().send());
    const auto snapshots = response.getInfo().getSnapshots();
    if (snapshots.size() != 0) std::printf("Snapshot list:\n%s", HumanSnapshots(snapshots).c_str());
    return 0;
  }
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  auto request = session.worker().snapshotRequest();
  request.setWork(options.snapshot == ImgOptions::Snapshot::kCreate  ? control::SnapshotWork::CREATE
                  : options.snapshot == ImgOptions::Snapshot::kApply ? control::SnapshotWork::APPLY
                                                                     : control::SnapshotWork::DELETE);
  request.setName(options.snapshot_name);
  request.setNowNs(int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec);
  session.Wait(request.send());
  return 0;
}

int Map(kj::AsyncIoContext& io, const ImgOptions& options) {
  ImgSession session(io, One(OpenAlone(options.file, options.format, true, !options.force_share)));
  const char* before = "[";  // of each entry: printed as they come, since there is no end to what may come
  if (!options.json) std::printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  for (uint64_t offset = 0;;) {
    auto request = session.worker().mapRequest();
    request.setOffset(offset);
    const auto response = session.Wait(request.send());
    const auto extents = response.getExtents();
    for (auto extent : extents) {
      // A process that lies must not keep this one here for ever.
      if (extent.getStart() != offset || extent.getBytes() == 0) throw FatalError("the map of the image is broken");
      offset += extent.getBytes();
      if (options.json) {
        nlohmann::json entry{
            {"start", extent.getStart()},     {"length", extent.getBytes()}, {"depth", 0},
            {"present", extent.getPresent()}, {"zero", extent.getZero()},    {"data", extent.getData()}};
        if (extent.getHasOffset()) entry["offset"] = extent.getOffset();
        std::printf("%s%s", before, entry.dump().c_str());
        before = ",\n";
      } else if (extent.getData() && extent.getHasOffset()) {
        std::printf("%-16s%-16s%-16s%s\n", fmt::format("{:#x}", extent.getStart()).c_str(),
                    fmt::format("{:#x}", extent.getBytes()).c_str(), fmt::format("{:#x}", extent.getOffset()).c_str(),
                    options.file.c_str());
      }
    }
    if (extents.size() == 0) break;
  }
  if (options.json) std::printf("]\n");
  return 0;
}

int Compare(kj::AsyncIoContext& io, const ImgOptions& options) {
  ImgOptions second = options;
  second.file = options.other;
  second.format = options.other_format;
  second.backing.clear();
  ImgSession session(io, Two(OpenChain(io, options, true), OpenChain(io, second, true)));
  auto request = session.worker().compareRequest();
  request.setStrict(options.strict);
  const auto response = session.Wait(request.send(), options.progress);
  if (response.getSizesDiffer() && !options.quiet) {
    std::printf("%s\n", options.strict ? "Strict mode: Image size mismatch!" : "Warning: Image size mismatch!");
  }
  if (!response.getSame()) {
    if (!options.quiet && !(options.strict && response.getSizesDiffer())) {
      std::printf("Content mismatch at offset %lu!\n", response.getOffset());
    }
    return kDiffer;
  }
  if (!options.quiet) std::printf("Images are identical.\n");
  return 0;
}

int Commit(kj::AsyncIoContext& io, const ImgOptions& options) {
  const std::vector<FileBelow> below = FilesBelow(io, options);
  if (below.empty()) {
    throw FatalError("image '" + options.file +
                     "': say what lies below it, with --backing FILE or --backing-from-header");
  }
  Chain under;
  under.alone = below.size() == 1;
  for (const FileBelow& file : below) under.files.push_back(OpenBelow(options, file, !under.files.empty()));
  ImgSession session(io, Two(OpenAlone(options.file, options.format, false, true), std::move(under)));
  session.Wait(session.worker().commitRequest().send(), ShowsProgress(options));
  if (!options.quiet) std::printf("Image committed.\n");
  return 0;
}

void RebaseData(kj::AsyncIoContext& io, const ImgOptions& options) {
  Chain under = OpenChain(io, OverNewBacking(options, options.file), true);
  ImgSession session(io, Two(OpenChain(io, options, false), std::move(under)));
  session.Wait(session.worker().rebaseRequest().send(), ShowsProgress(options));
}

int Rebase(kj::AsyncIoContext& io, const ImgOptions& options) {
  if (!options.unsafe) {
    if (options.new_backing.empty())
      throw UsageError("-b \"\": only with -u; use convert to make an image that needs no other");
    RebaseData(io, options);
  }
  ImgSession session(io, One(OpenAlone(options.file, options.format, false, true)));
  auto request = session.worker().setBackingRequest();
  request.setName(options.new_backing);
  request.setFormat(options.new_backing_format);
  session.Wait(request.send());
  return 0;
}

}  // namespace

int ImgCommand(const ImgOptions& options) {
  auto io = kj::setupAsyncIo();
  switch (options.job) {
    case Job::kCreate:
      return Create(io, options);
    case Job::kInfo:
      return Info(io, options);
    case Job::kCheck:
      return Check(io, options);
    case Job::kConvert:
      return Convert(io, options);
    case Job::kResize:
      return Resize(io, options);
    case Job::kSnapshot:
      return Snapshot(io, options);
    case Job::kMap:
      return Map(io, options);
    case Job::kCommit:
      return Commit(io, options);
    case Job::kRebase:
      return Rebase(io, options);
    case Job::kCompare:
      return Compare(io, options);
  }
  return 1;
}

}  // namespace bulkhead::launcher
