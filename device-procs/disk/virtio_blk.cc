// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/virtio_blk.h"

#include <algorithm>
#include <bit>
#include <cstddef>

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

constexpr uint16_t kStateVersion = 1;

}  // namespace

VirtioBlk::VirtioBlk(const GuestMemory& memory, std::unique_ptr<BlockImage> image, VirtioBlkOptions options)
    : image_(std::move(image)), options_(std::move(options)) {
  FillConfig(static_cast<uint16_t>(options_.kick_fds.size()));
  for (uint16_t i = 0; i < options_.kick_fds.size(); ++i) {
    workers_.push_back(std::make_unique<QueueWorker>(memory, *image_,
                                                     QueueWorkerParts{.index = i,
                                                                      .queue_size = kQueueSize,
                                                                      .kick_fd = options_.kick_fds[i],
                                                                      .disk_id = options_.disk_id,
                                                                      .log = options_.log}));
  }
}

void VirtioBlk::FillConfig(uint16_t queues) {
  const BlockGeometry& geometry = image_->geometry();
  const uint32_t physical_blocks = std::max(1u, geometry.physical_block_bytes / geometry.logical_block_bytes);
  config_.capacity_sectors = geometry.size_bytes / kSectorBytes;
  // Header and status take a descriptor each, and a chain is no longer than its queue.
  config_.seg_max = kQueueSize - 2;
  config_.block_bytes = geometry.logical_block_bytes;
  config_.physical_block_exponent = static_cast<uint8_t>(std::bit_width(physical_blocks) - 1);
  config_.min_io_blocks = static_cast<uint16_t>(std::min(physical_blocks, 0xFFFFu));
  config_.writeback = 1;
  config_.queues = queues;
  if (!TakesDiscard()) return;
  config_.max_discard_sectors = config_.max_write_zeroes_sectors = kMaxSegmentSectors;
  config_.max_discard_segments = config_.max_write_zeroes_segments = kMaxSegments;
  config_.discard_sector_alignment = std::max(1u, geometry.physical_block_bytes / kSectorBytes);
  config_.write_zeroes_may_unmap = 1;
}

uint64_t VirtioBlk::Features() const {
  uint64_t features = kSegMax | kBlockSize | kFlush | kTopology | kConfigWce | kMultiQueue;
  if (image_->geometry().read_only) features |= kReadOnly;
  if (TakesDiscard()) features |= kDiscard | kWriteZeroes;
  return features;
}

void VirtioBlk::WriteConfig(uint64_t offset, std::span<const std::byte> data) {
  // The cache mode is the one field that is the driver's (§5.2.4); writes that reach beyond it are not.
  if (offset != offsetof(VirtioBlkConfig, writeback) || data.size() != 1 || (features_ & kConfigWce) == 0) return;
  config_.writeback = (data[0] & std::byte{1}) != std::byte{0} ? 1 : 0;
  UpdateCacheMode();
}

void VirtioBlk::UpdateCacheMode() {
  // §5.2.5.2: with neither feature a driver takes every completed write to be durable.
  const bool writeback = (features_ & kConfigWce) != 0 ? config_.writeback != 0 : (features_ & kFlush) != 0;
  write_through_.store(!writeback, std::memory_order_relaxed);
}

void VirtioBlk::Activate(uint64_t features, VirtioTransport& transport) {
  features_ = features;
  transport_ = &transport;
  UpdateCacheMode();
  if (!paused_) StartWorkers();
}

void VirtioBlk::Deactivate() {
  StopWorkers();
  transport_ = nullptr;
  features_ = 0;
  config_.writeback = 1;
}

void VirtioBlk::Pause() {
  paused_ = true;
  StopWorkers();
}

void VirtioBlk::Resume() {
  paused_ = false;
  if (transport_ != nullptr) StartWorkers();
}

void VirtioBlk::StartWorkers() {
  const BlockGeometry& geometry = image_->geometry();
  const RequestRules rules{.capacity_bytes = geometry.size_bytes,
                           .block_bytes = geometry.logical_block_bytes,
                           .read_only = geometry.read_only,
                           .discard = (features_ & kDiscard) != 0,
                           .write_zeroes = (features_ & kWriteZeroes) != 0,
                           .unmap = config_.write_zeroes_may_unmap != 0};
  for (uint16_t i = 0; i < workers_.size(); ++i) {
    Virtqueue* queue = transport_->Queue(i);
    if (queue == nullptr) continue;
    workers_[i]->Start({.queue = queue,
                        .transport = transport_,
                        .index = i,
                        .rules = rules,
                        .write_through = &write_through_});
  }
}

void VirtioBlk::StopWorkers() {
  // All are told before the first is waited for.
  for (const auto& worker : workers_) worker->RequestStop();
  for (const auto& worker : workers_) worker->WaitStopped();
}

void VirtioBlk::SaveDevice(capnp::AnyPointer::Builder state) const {
  auto out = state.initAs<state::DiskState>();
  out.setVersion(kStateVersion);
  out.setCapacitySectors(config_.capacity_sectors);
  out.setWriteback(config_.writeback != 0);
}

Result<void> VirtioBlk::RestoreDevice(capnp::AnyPointer::Reader state) {
  const auto from = state.getAs<state::DiskState>();
  if (from.getVersion() != kStateVersion) return Error{EPROTO, "saved disk is of a version that is not known here"};
  if (from.getCapacitySectors() != config_.capacity_sectors) {
    return Error{EINVAL, "saved disk had " + std::to_string(from.getCapacitySectors()) + " sectors, the image has " +
                             std::to_string(config_.capacity_sectors)};
  }
  config_.writeback = from.getWriteback() ? 1 : 0;
  return {};
}

}  // namespace bulkhead::device
