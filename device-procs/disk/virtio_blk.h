// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 §5.2): features, configuration structure and saved state; a worker per queue does the requests.
// Constructor: main thread, before lock-down. The rest: device thread. Configuration writes are the guest's: hostile.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/common/virtio_device.h"
#include "device-procs/disk/block_image.h"
#include "device-procs/disk/queue_worker.h"

namespace bulkhead::device {

struct VirtioBlkOptions {
  std::string disk_id;        // what GET_ID answers: at most kDiskIdBytes
  bool discard = false;       // offer discard and write-zeroes, if the image can be written
  QueueServer::Log log;       // any queue's thread
  std::vector<int> kick_fds;  // the transport's, one for each queue; needed during construction only
};

// The device configuration structure (§5.2.4), little-endian.
struct [[gnu::packed]] VirtioBlkConfig {
  uint64_t capacity_sectors;
  uint32_t size_max;
  uint32_t seg_max;
  uint16_t cylinders;
  uint8_t heads;
  uint8_t sectors;
  uint32_t block_bytes;
  uint8_t physical_block_exponent;
  uint8_t alignment_offset;
  uint16_t min_io_blocks;
  uint32_t optimal_io_blocks;
  uint8_t writeback;
  uint8_t unused0;
  uint16_t queues;
  uint32_t max_discard_sectors;
  uint32_t max_discard_segments;
  uint32_t discard_sector_alignment;
  uint32_t max_write_zeroes_sectors;
  uint32_t max_write_zeroes_segments;
  uint8_t write_zeroes_may_unmap;
  uint8_t unused1[3];
};
static_assert(sizeof(VirtioBlkConfig) == 60);

class VirtioBlk final : public VirtioDevice {
 public:
  static constexpr uint16_t kQueueSize = 256;

  // Throws FatalError. `memory` outlives it.
  VirtioBlk(const GuestMemory& memory, std::unique_ptr<BlockImage> image, VirtioBlkOptions options);

  uint16_t Type() const override { return 2; }
  uint32_t PciClass() const override { return 0x01'80'00; }  // mass storage controller, none of the known ones
  uint64_t Features() const override;
  uint16_t QueueCount() const override { return static_cast<uint16_t>(workers_.size()); }
  uint16_t QueueMaxSize() const override { return kQueueSize; }
  std::span<const std::byte> Config() const override { return std::as_bytes(std::span(&config_, 1)); }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override;

  void Activate(uint64_t features, VirtioTransport& transport) override;
  void Deactivate() override;
  void ProcessQueue(uint16_t index) override { workers_[index]->Look(); }
  bool OwnsKicks() const override { return true; }
  void Pause() override;
  void Resume() override;
  void SaveDevice(capnp::AnyPointer::Builder state) const override;
  Result<void> RestoreDevice(capnp::AnyPointer::Reader state) override;

 private:
  void FillConfig(uint16_t queues);
  bool TakesDiscard() const { return options_.discard && !image_->geometry().read_only; }
  void UpdateCacheMode();
  void StartWorkers();
  void StopWorkers();

  std::unique_ptr<BlockImage> image_;
  VirtioBlkOptions options_;
  VirtioBlkConfig config_{};
  std::atomic<bool> write_through_ = false;
  uint64_t features_ = 0;                 // negotiated
  VirtioTransport* transport_ = nullptr;  // while active
  bool paused_ = true;
  std::vector<std::unique_ptr<QueueWorker>> workers_;
};

}  // namespace bulkhead::device
