// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 §5.2): feature bits, configuration structure and life cycle of a disk; its queues are served
// by worker threads, as many as the image can have channels, at most one for each. Disk process, device thread.
// Configuration writes are the guest's, the image's header its author's, saved state anyone's: hostile.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "device-procs/common/block/block_image.h"
#include "device-procs/common/virtio_device.h"
#include "device-procs/disk/queue_worker.h"
#include "ipc/guest_memory.h"

namespace bulkhead::device {

struct VirtioBlkOptions {
  std::string disk_id;        // at most kDiskIdBytes
  bool discard = true;        // offer discard and write-zeroes
  QueueServer::Log log;       // any thread
  std::vector<int> kick_fds;  // of each queue; needed during construction only
  ThrottleLimits throttle = {};
};

class VirtioBlk final : public VirtioDevice {
 public:
  // Before lock-down: starts the threads; reads nothing of the image. Throws FatalError. Memory outlives it.
  VirtioBlk(const GuestMemory& memory, std::unique_ptr<BlockImage> image, VirtioBlkOptions options);
  ~VirtioBlk() override;

  uint16_t Type() const override { return 2; }
  uint32_t PciClass() const override { return 0x01'80'00; }  // mass storage of no special kind
  uint64_t Features() const override { return features_; }
  uint16_t QueueCount() const override { return queue_count_; }
  uint16_t QueueMaxSize() const override { return kQueueSize; }
  std::span<const std::byte> Config() const override { return config_; }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override;
  void Activate(uint64_t features, VirtioTransport& transport) override;
  void Deactivate() override;
  void ProcessQueue(uint16_t index) override;
  bool OwnsKicks() const override { return true; }
  // Opens the image; its geometry, and with it features and configuration, are known from then on.
  Result<void> ReadInput() override;
  void SetThrottle(control::DiskThrottle::Reader limits) override;
  unsigned AskPulse() override;
  void Pause() override;
  void Resume() override;
  void SaveDevice(capnp::AnyPointer::Builder state) const override;
  Result<void> RestoreDevice(capnp::AnyPointer::Reader state) override;

 private:
  static constexpr uint16_t kQueueSize = 256;
  static constexpr size_t kConfigBytes = 60;  // up to and with write_zeroes_may_unmap and its padding

  uint64_t OfferedFeatures() const;
  void BuildConfig();
  void StartWorkers();
  void StopWorkers(QueueWorker::Stop how);
  void SetWriteback(bool writeback);

  const std::unique_ptr<BlockImage> image_;
  const uint16_t queue_count_;
  const bool discard_;
  uint64_t features_ = 0;
  std::array<std::byte, kConfigBytes> config_{};
  std::atomic<bool> write_through_ = false;
  Throttle throttle_;

  VirtioTransport* transport_ = nullptr;  // while active
  uint64_t negotiated_ = 0;
  bool paused_ = true;
  bool serving_ = false;
  std::vector<std::unique_ptr<QueueWorker>> workers_;  // last: they use the rest
};

}  // namespace bulkhead::device
