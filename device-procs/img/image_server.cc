// SPDX-License-Identifier: Apache-2.0
#include "device-procs/img/image_server.h"

#include "device-procs/common/block/qcow2/table_walk.h"
#include "device-procs/img/convert.h"
#include "device-procs/img/jobs.h"
#include "ipc/rpc.h"

namespace bulkhead::img {

using device::ImageFormat;
using device::Task;

namespace {

control::ImageGrant::Format FormatWord(ImageFormat format) {
  switch (format) {
    case ImageFormat::kQcow2:
      return control::ImageGrant::Format::QCOW2;
    case ImageFormat::kQcow:
      return control::ImageGrant::Format::QCOW;
    default:
      return control::ImageGrant::Format::RAW;
  }
}

// What the main thread answers with is gathered on the worker thread, which alone may look into images.
struct Facts {
  ImageFormat format = ImageFormat::kRaw;
  uint64_t virtual_bytes = 0;
  qcow2::Header header;
  std::vector<qcow2::Snapshot> snapshots;
};

Task<Result<void>> GatherFacts(OpenImage& image, std::shared_ptr<Facts> facts) {
  Result<void> opened = co_await Open(image);
  if (!opened.ok()) co_return opened;
  facts->format = image.chain->format();
  facts->virtual_bytes = image.chain->geometry().size_bytes;
  if (image.chain->qcow2() == nullptr) co_return Result<void>();
  facts->header = image.chain->qcow2()->header();
  Result<qcow2::SnapshotTable> table = co_await qcow2::ReadSnapshots(image.chain->qcow2()->state());
  if (!table.ok()) co_return table.error();
  facts->snapshots = std::move(table->snapshots);
  co_return Result<void>();
}

void Fill(const Facts& facts, control::ImageInfo::Builder out) {
  out.setFormat(FormatWord(facts.format));
  out.setVirtualBytes(facts.virtual_bytes);
  if (facts.format != ImageFormat::kQcow2) return;
  const qcow2::Header& header = facts.header;
  out.setClusterBytes(header.layout.cluster_bytes());
  out.setBackingFile(header.backing_file);
  out.setBackingFormat(header.backing_format);
  out.setVersion(header.version);
  out.setRefcountBits(header.layout.refcount_bits());
  out.setLazyRefcounts((header.compatible & qcow2::kLazyRefcounts) != 0);
  out.setDirty((header.incompatible & qcow2::kDirty) != 0);
  out.setCorrupt((header.incompatible & qcow2::kCorrupt) != 0);
  out.setZstd(header.compression == qcow2::Compression::kZstd);
  auto snapshots = out.initSnapshots(static_cast<unsigned>(facts.snapshots.size()));
  for (unsigned i = 0; i < snapshots.size(); ++i) {
    const qcow2::Snapshot& snapshot = facts.snapshots[i];
    snapshots[i].setId(snapshot.id);
    snapshots[i].setName(snapshot.name);
    snapshots[i].setVmStateBytes(snapshot.vm_state_bytes);
    snapshots[i].setDateSec(snapshot.date_sec);
    snapshots[i].setDateNsec(snapshot.date_nsec);
    snapshots[i].setVmClockNs(snapshot.vm_clock_ns);
    snapshots[i].setDiskBytes(snapshot.disk_bytes);
  }
}

// The qcow2 image that a job on tables needs.
Task<Result<qcow2::Qcow2Channel*>> OpenQcow2(OpenImage& image) {
  Result<void> opened = co_await Open(image);
  if (!opened.ok()) co_return opened.error();
  if (image.chain->qcow2() == nullptr) co_return Error{ENOTSUP, "images of this format have no such tables"};
  co_return image.chain->qcow2();
}

Task<Result<void>> CheckInto(OpenImage& image, qcow2::Repair repair, std::shared_ptr<qcow2::CheckReport> report) {
  Result<qcow2::Qcow2Channel*> qcow2 = co_await OpenQcow2(image);
  if (!qcow2.ok()) co_return qcow2.error();
  Result<qcow2::CheckReport> checked = co_await qcow2::Check(**qcow2, repair);
  if (!checked.ok()) co_return checked.error();
  *report = std::move(*checked);
  co_return Result<void>();
}

Task<Result<void>> MapInto(OpenImage& image, uint64_t offset, std::shared_ptr<std::vector<MapEntry>> entries) {
  Result<void> opened = co_await Open(image);
  if (!opened.ok()) co_return opened;
  Result<std::vector<MapEntry>> found = co_await Map(image, offset);
  if (!found.ok()) co_return found.error();
  *entries = std::move(*found);
  co_return Result<void>();
}

Task<Result<void>> ResizeImage(OpenImage& image, uint64_t size_bytes, bool shrink) {
  Result<qcow2::Qcow2Channel*> qcow2 = co_await OpenQcow2(image);
  if (!qcow2.ok()) co_return qcow2.error();
  Result<void> resized = co_await qcow2::Resize(**qcow2, size_bytes, shrink);
  co_return resized;
}

Task<Result<void>> WorkOnSnapshot(OpenImage& image, control::SnapshotWork work, std::string name, int64_t now_ns) {
  Result<qcow2::Qcow2Channel*> qcow2 = co_await OpenQcow2(image);
  if (!qcow2.ok()) co_return qcow2.error();
  Result<void> done;
  switch (work) {
    case control::SnapshotWork::CREATE:
      done = co_await qcow2::CreateSnapshot(**qcow2, std::move(name), now_ns);
      break;
    case control::SnapshotWork::APPLY:
      done = co_await qcow2::ApplySnapshot(**qcow2, std::move(name));
      break;
    case control::SnapshotWork::DELETE:
      done = co_await qcow2::DeleteSnapshot(**qcow2, std::move(name));
      break;
    default:
      done = Error{EINVAL, "no such work on snapshots"};
      break;
  }
  co_return done;
}

Task<Result<void>> SetBackingOf(OpenImage& image, std::string name, std::string format) {
  Result<qcow2::Qcow2Channel*> qcow2 = co_await OpenQcow2(image);
  if (!qcow2.ok()) co_return qcow2.error();
  Result<void> set = co_await qcow2::SetBacking(**qcow2, std::move(name), std::move(format));
  co_return set;
}

Task<Result<void>> CompareInto(OpenImage& first, OpenImage& second, bool strict, Progress& progress,
                               std::shared_ptr<Comparison> result) {
  Result<Comparison> compared = co_await Compare(first, second, strict, progress);
  if (!compared.ok()) co_return compared.error();
  *result = *compared;
  co_return Result<void>();
}

// The launcher may be anyone: what it asks for is held to what the format can be.
Result<qcow2::NewImage> TakeOptions(control::ImageCreate::Reader from) {
  qcow2::NewImage image;
  image.size_bytes = from.getVirtualBytes();
  image.version = from.getVersion();
  image.layout.cluster_bits = from.getClusterBits();
  image.layout.refcount_order = from.getRefcountOrder();
  image.lazy_refcounts = from.getLazyRefcounts();
  image.compression = from.getZstd() ? qcow2::Compression::kZstd : qcow2::Compression::kZlib;
  image.backing_file = from.getBackingFile().cStr();
  image.backing_format = from.getBackingFormat().cStr();
  const uint32_t bits = image.layout.cluster_bits;
  if (bits < qcow2::kMinClusterBits || bits > qcow2::kMaxClusterBits ||
      image.layout.refcount_order > qcow2::kMaxRefcountOrder || (image.version != 2 && image.version != 3) ||
      image.size_bytes > uint64_t{1} << 62) {
    return Error{EINVAL, "there can be no image with these options"};
  }
  return image;
}

Task<Result<void>> CreateAndConvert(std::vector<OpenImage*> from, OpenImage& to, std::optional<qcow2::NewImage> image,
                                    Preallocation preallocation, ConvertOptions options, device::Offload& offload,
                                    Progress& progress) {
  if (image) {
    Result<void> created = co_await Create(to, std::move(*image), preallocation);
    if (!created.ok()) co_return created;
  }
  Result<void> converted = co_await Convert(std::move(from), to, options, offload, progress);
  co_return converted;
}

}  // namespace

kj::Promise<void> ImageServer::Run(size_t images, WorkerThread::Job job) {
  if (worker_.images().size() < images) return Failure("this work takes more images");
  if (std::exchange(busy_, true)) return Failure("other work is being done");
  auto end = kj::newPromiseAndFulfiller<void>();
  end_ = kj::mv(end.fulfiller);
  worker_.Run(std::move(job), [this](const Result<void>& result) {
    busy_ = false;
    if (result.ok()) {
      end_->fulfill();
    } else {
      end_->reject(Failure(result.error().message));
    }
  });
  return kj::mv(end.promise);
}

kj::Promise<void> ImageServer::info(InfoContext context) {
  auto facts = std::make_shared<Facts>();
  return Run(1, [this, facts] { return GatherFacts(image(0), facts); }).then([context, facts]() mutable {
    Fill(*facts, context.getResults().initInfo());
  });
}

kj::Promise<void> ImageServer::map(MapContext context) {
  auto entries = std::make_shared<std::vector<MapEntry>>();
  const uint64_t offset = context.getParams().getOffset();
  return Run(1, [this, offset, entries] { return MapInto(image(0), offset, entries); })
      .then([context, entries]() mutable {
        auto out = context.getResults().initExtents(static_cast<unsigned>(entries->size()));
        for (unsigned i = 0; i < out.size(); ++i) {
          const device::BlockExtent& extent = (*entries)[i].extent;
          out[i].setStart((*entries)[i].start);
          out[i].setBytes(extent.size_bytes);
          out[i].setZero(extent.zero);
          out[i].setData(extent.data);
          out[i].setCompressed(extent.compressed);
          out[i].setPresent(!extent.backing);
          out[i].setHasOffset(extent.file_offset.has_value());
          out[i].setOffset(extent.file_offset.value_or(0));
        }
      });
}

kj::Promise<void> ImageServer::check(CheckContext context) {
  auto report = std::make_shared<qcow2::CheckReport>();
  const auto wanted = context.getParams().getRepair();
  const auto repair = wanted == control::ImageCheck::Repair::ALL     ? qcow2::Repair::kAll
                      : wanted == control::ImageCheck::Repair::LEAKS ? qcow2::Repair::kLeaks
                                                                     : qcow2::Repair::kNone;
  return Run(1, [this, repair, report] { return CheckInto(image(0), repair, report); })
      .then([context, report]() mutable {
        auto out = context.getResults().initReport();
        out.setLeaks(report->leaks);
        out.setCorruptions(report->corruptions);
        out.setLeaksFixed(report->leaks_fixed);
        out.setCorruptionsFixed(report->corruptions_fixed);
        out.setImageEnd(report->image_end);
        out.setTotalClusters(report->total_clusters);
        out.setAllocatedClusters(report->allocated_clusters);
        out.setFragmentedClusters(report->fragmented_clusters);
        out.setCompressedClusters(report->compressed_clusters);
        auto messages = out.initMessages(static_cast<unsigned>(report->messages.size()));
        for (unsigned i = 0; i < messages.size(); ++i) messages.set(i, report->messages[i]);
      });
}

kj::Promise<void> ImageServer::create(CreateContext context) {
  const auto options = context.getParams().getOptions();
  const Result<qcow2::NewImage> image_options = TakeOptions(options);
  if (!image_options.ok()) return Failure(image_options.error().message);
  const auto preallocation = static_cast<Preallocation>(options.getPreallocation());
  return Run(1, [this, made = *image_options, preallocation] { return Create(image(0), made, preallocation); });
}

kj::Promise<void> ImageServer::resize(ResizeContext context) {
  const auto params = context.getParams();
  return Run(1, [this, bytes = params.getVirtualBytes(), shrink = params.getShrink()] {
    return ResizeImage(image(0), bytes, shrink);
  });
}

kj::Promise<void> ImageServer::snapshot(SnapshotContext context) {
  const auto params = context.getParams();
  return Run(1, [this, work = params.getWork(), name = std::string(params.getName().cStr()),
                 now_ns = params.getNowNs()] { return WorkOnSnapshot(image(0), work, name, now_ns); });
}

kj::Promise<void> ImageServer::convert(ConvertContext context) {
  const auto options = context.getParams().getOptions();
  std::optional<qcow2::NewImage> made;
  if (options.hasCreate()) {
    const Result<qcow2::NewImage> taken = TakeOptions(options.getCreate());
    if (!taken.ok()) return Failure(taken.error().message);
    made = *taken;
  }
  const auto preallocation = static_cast<Preallocation>(options.getCreate().getPreallocation());
  constexpr unsigned kMaxRequests = 16;
  const ConvertOptions convert{.compress = options.getCompress(),
                               .requests = std::clamp<unsigned>(options.getRequests(), 1, kMaxRequests),
                               .zero_run_bytes = options.getZeroRunBytes(),
                               .target_reads_zero = options.getTargetReadsZero()};
  return Run(2, [this, made, preallocation, convert] {
    std::vector<OpenImage*> from;
    for (OpenImage& each : worker_.images()) from.push_back(&each);
    OpenImage& to = *from.back();
    from.pop_back();
    return CreateAndConvert(std::move(from), to, made, preallocation, convert, worker_.offload(), worker_.progress());
  });
}

kj::Promise<void> ImageServer::compare(CompareContext context) {
  auto result = std::make_shared<Comparison>();
  const bool strict = context.getParams().getStrict();
  return Run(2, [this, strict, result] { return CompareInto(image(0), image(1), strict, worker_.progress(), result); })
      .then([context, result]() mutable {
        auto out = context.getResults();
        out.setSame(result->same);
        out.setOffset(result->offset);
        out.setSizesDiffer(result->sizes_differ);
      });
}

kj::Promise<void> ImageServer::commit(CommitContext) {
  return Run(2, [this] { return Commit(image(0), image(1), worker_.progress()); });
}

kj::Promise<void> ImageServer::setBacking(SetBackingContext context) {
  const auto params = context.getParams();
  return Run(1, [this, name = std::string(params.getName().cStr()), format = std::string(params.getFormat().cStr())] {
    return SetBackingOf(image(0), name, format);
  });
}

kj::Promise<void> ImageServer::rebase(RebaseContext) {
  return Run(2, [this] { return Rebase(image(0), image(1), worker_.progress()); });
}

kj::Promise<void> ImageServer::progress(ProgressContext context) {
  context.getResults().setDone(worker_.progress().done);
  context.getResults().setTotal(worker_.progress().total);
  return kj::READY_NOW;
}

}  // namespace bulkhead::img
