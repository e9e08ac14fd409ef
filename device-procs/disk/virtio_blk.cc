// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/virtio_blk.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "device-procs/disk/disk_state.capnp.h"

namespace bulkhead::device {
namespace {

// Feature bits (§5.2.3).
constexpr uint64_t kSegMax = FeatureBit(2);
constexpr uint64_t kReadOnly = FeatureBit(5);
constexpr uint64_t kBlockSize = FeatureBit(6);
constexpr uint64_t kFlush = FeatureBit(9);
constexpr uint64_t kTopology = FeatureBit(10);
constexpr uint64_t kConfigWce = FeatureBit(11);
constexpr uint64_t kMultiQueue = FeatureBit(12);
constexpr uint64_t kDiscard = FeatureBit(13);
constexpr uint64_t kWriteZeroes = FeatureBit(14);

// Configuration structure (§5.2.4).
enum ConfigField : size_t {
  kCapacity = 0,
  kSegMaxField = 12,
  kBlockSizeField = 20,
  kPhysicalBlockExp = 24,
  kMinIoSize = 26,
  kWriteback = 32,
  kNumQueues = 34,
  kMaxDiscardSectors = 36,
  kMaxDiscardSeg = 40,
  kDiscardSectorAlignment = 44,
  kMaxWriteZeroesSectors = 48,
  kMaxWriteZeroesSeg = 52,
  kWriteZeroesMayUnmap = 56,
};

constexpr uint16_t kStateVersion = 1;

}  // namespace

VirtioBlk::VirtioBlk(const GuestMemory& memory, std::unique_ptr<BlockImage> image, VirtioBlkOptions options)
    : image_(std::move(image)),
      queue_count_(static_cast<uint16_t>(options.kick_fds.size())),
      discard_(options.discard) {
  if (options.disk_id.size() > kDiskIdBytes) throw FatalError("the disk's id is longer than 20 bytes");
  throttle_.Set(options.throttle);
  const size_t count = std::min<size_t>(queue_count_, image_->max_channels());
  std::vector<QueueWorkerParts> parts(
      count,
      {.queues = {}, .queue_size = kQueueSize, .disk_id = options.disk_id, .throttle = &throttle_, .log = options.log});
  for (uint16_t i = 0; i < queue_count_; ++i) {
    parts[i % count].queues.push_back({.index = i, .kick_fd = options.kick_fds[i]});
  }
  for (QueueWorkerParts& each : parts) {
    workers_.push_back(std::make_unique<QueueWorker>(memory, *image_, std::move(each)));
  }
}

VirtioBlk::~VirtioBlk() = default;

Result<void> VirtioBlk::ReadInput() {
  // One after the other: what the first finds out of the image is the others' too.
  for (const auto& worker : workers_) {
    if (auto opened = worker->OpenChannel(); !opened.ok()) {
      return Error{opened.error().code, "disk " + opened.error().message};
    }
  }
  features_ = OfferedFeatures();
  BuildConfig();
  return {};
}

void VirtioBlk::SetThrottle(control::DiskThrottle::Reader limits) {
  throttle_.Set(ThrottleLimitsOf(limits));
  // Those that wait under the old limits look again.
  if (!serving_) return;
  for (uint16_t i = 0; i < queue_count_; ++i) SignalEventFd(transport_->KickFd(i));
}

uint64_t VirtioBlk::OfferedFeatures() const {
  uint64_t features = kSegMax | kBlockSize | kFlush | kTopology;
  if (queue_count_ > 1) features |= kMultiQueue;
  if (image_->geometry().read_only) return features | kReadOnly;
  features |= kConfigWce;
  return discard_ ? features | kDiscard | kWriteZeroes : features;
}

void VirtioBlk::BuildConfig() {
  const auto put = [this](size_t offset, auto value) { std::memcpy(config_.data() + offset, &value, sizeof value); };
  const BlockGeometry& geometry = image_->geometry();
  const uint32_t blocks = geometry.physical_block_bytes / geometry.logical_block_bytes;
  put(kCapacity, geometry.size_bytes / kSectorBytes);
  // Header and status take a descriptor each of a chain that may be as long as the queue.
  put(kSegMaxField, uint32_t{kQueueSize - 2});
  put(kBlockSizeField, geometry.logical_block_bytes);
  put(kPhysicalBlockExp, static_cast<uint8_t>(std::bit_width(blocks) - 1));
  put(kMinIoSize, static_cast<uint16_t>(blocks));
  put(kWriteback, uint8_t{1});
  put(kNumQueues, queue_count_);
  if ((features_ & kDiscard) != 0) {
    put(kMaxDiscardSectors, kMaxSegmentSectors);
    put(kMaxDiscardSeg, kMaxSegments);
    put(kDiscardSectorAlignment, geometry.physical_block_bytes / kSectorBytes);
    put(kMaxWriteZeroesSectors, kMaxSegmentSectors);
    put(kMaxWriteZeroesSeg, kMaxSegments);
    put(kWriteZeroesMayUnmap, uint8_t{1});
  }
}

void VirtioBlk::SetWriteback(bool writeback) {
  config_[kWriteback] = std::byte{writeback};
  // A driver that has neither a choice nor flushes needs completed writes to be durable (§5.2.6.2).
  const bool may_choose = (negotiated_ & kConfigWce) != 0;
  write_through_ = may_choose ? !writeback : (negotiated_ & kFlush) == 0;
}

void VirtioBlk::WriteConfig(uint64_t offset, std::span<const std::byte> data) {
  // The only field to write, and only where that was negotiated (§5.2.5.1).
  if (offset != kWriteback || data.size() != 1 || (negotiated_ & kConfigWce) == 0) return;
  if (data[0] <= std::byte{1}) SetWriteback(data[0] == std::byte{1});
}

void VirtioBlk::Activate(uint64_t features, VirtioTransport& transport) {
  transport_ = &transport;
  negotiated_ = features;
  // A driver that may choose but cannot flush starts without a cache (§5.2.5.2).
  const bool no_cache = (features & kConfigWce) != 0 && (features & kFlush) == 0;
  SetWriteback(config_[kWriteback] == std::byte{1} && !no_cache);
  StartWorkers();
}

void VirtioBlk::Deactivate() {
  if (serving_) StopWorkers(QueueWorker::Stop::kAbandon);
  transport_ = nullptr;
  negotiated_ = 0;
  SetWriteback(true);
}

void VirtioBlk::ProcessQueue(uint16_t index) {
  // A worker looks at its queue when it starts; this is for a look in between.
  if (serving_) SignalEventFd(transport_->KickFd(index));
}

void VirtioBlk::Pause() {
  paused_ = true;
  // Also where no driver is there any more: what it wrote may not be on the disk yet.
  StopWorkers(QueueWorker::Stop::kSettle);
}

void VirtioBlk::Resume() {
  paused_ = false;
  StartWorkers();
}

unsigned VirtioBlk::AskPulse() {
  unsigned open = 0;
  for (const auto& worker : workers_) open = std::max(open, worker->AskPulse());
  return open;
}

void VirtioBlk::StartWorkers() {
  if (paused_ || serving_ || transport_ == nullptr) return;
  serving_ = true;
  const BlockGeometry& geometry = image_->geometry();
  const RequestRules rules{.capacity_bytes = geometry.size_bytes,
                           .block_bytes = geometry.logical_block_bytes,
                           .read_only = geometry.read_only,
                           .discard = (negotiated_ & kDiscard) != 0,
                           .write_zeroes = (negotiated_ & kWriteZeroes) != 0};
  std::vector<std::vector<QueueSession>> sessions(workers_.size());
  for (uint16_t i = 0; i < queue_count_; ++i) {
    Virtqueue* queue = transport_->Queue(i);
    if (queue == nullptr) continue;
    sessions[i % workers_.size()].push_back(
        {.queue = queue, .transport = transport_, .index = i, .rules = rules, .write_through = &write_through_});
  }
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i]->Start(std::move(sessions[i]));
}

void VirtioBlk::StopWorkers(QueueWorker::Stop how) {
  serving_ = false;
  // All at once, so that the wait is for the slowest and not for the sum.
  for (const auto& worker : workers_) worker->RequestStop(how);
  for (const auto& worker : workers_) worker->WaitStopped();
}

void VirtioBlk::SaveDevice(capnp::AnyPointer::Builder state) const {
  auto out = state.initAs<state::DiskState>();
  out.setVersion(kStateVersion);
  out.setCapacitySectors(image_->geometry().size_bytes / kSectorBytes);
  out.setWriteback(config_[kWriteback] == std::byte{1});
}

Result<void> VirtioBlk::RestoreDevice(capnp::AnyPointer::Reader state) {
  const auto from = state.getAs<state::DiskState>();
  if (from.getVersion() != kStateVersion) {
    return Error{EPROTO, "saved disk state is of a version that is not known here"};
  }
  if (from.getCapacitySectors() != image_->geometry().size_bytes / kSectorBytes) {
    return Error{EPROTO, "saved disk state is of a disk of another size"};
  }
  // Takes effect with the negotiated features, in Activate.
  config_[kWriteback] = std::byte{from.getWriteback()};
  return {};
}

}  // namespace bulkhead::device
