// SPDX-License-Identifier: Apache-2.0
// A guest's virtio-blk driver, for tests: the real device with its real threads, driven over guest memory and eventfds.
// The calling thread is the device thread; requests to different queues may come from different threads.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device-procs/common/virtio_pci_driver.h"
#include "device-procs/disk/virtio_blk.h"

namespace bulkhead::device::test {

enum BlkRequest : uint32_t {
  kBlkRead = 0,
  kBlkWrite = 1,
  kBlkFlush = 4,
  kBlkGetId = 8,
  kBlkDiscard = 11,
  kBlkZeroes = 13
};

struct BlkSegment {
  uint64_t sector;
  uint32_t count;
  uint32_t flags;
};

struct BlkDone {
  uint16_t head = 0;
  int status = -1;
  uint32_t length = 0;
};

struct DiskDriverOptions {
  uint16_t queues = 1;
  bool event_index = false;
  bool sleep = true;  // while waiting: false under a filter that does not know how
};

class DiskDriver {
 public:
  static constexpr uint16_t kQueueSize = 256;
  // Guest memory: a part for each queue and the headers of its requests, then data.
  static constexpr uint64_t kQueuePart = 0x10000;
  static constexpr Gpa kData{0x100000};
  static constexpr uint64_t kMemoryBytes = 32 << 20;

  DiskDriver(const GuestMemory& memory, std::unique_ptr<BlockImage> image, DiskDriverOptions options = {})
      : memory_(memory), options_(options) {
    VirtioBlkOptions blk{.disk_id = "test-disk", .discard = true, .log = {}, .kick_fds = {}};
    blk.log = [this](const std::string& line) {
      std::lock_guard lock(log_mutex_);
      log_.push_back(line);
    };
    for (uint16_t i = 0; i < options.queues; ++i) {
      kicks_.push_back(OrThrow(MakeEventFd()));
      blk.kick_fds.push_back(kicks_.back().get());
      queues_.push_back(std::make_unique<Queue>(memory, Gpa{i * kQueuePart}));
    }
    function_ =
        std::make_unique<FunctionDriver>(std::make_unique<VirtioBlk>(memory, std::move(image), std::move(blk)), memory);
  }

  // Reset to DRIVER_OK with fresh queues.
  void SetUp() {
    const uint64_t features = function_->DeviceFeatures() & ~(options_.event_index ? 0 : kEventIndex);
    ASSERT_TRUE(function_->Negotiate(features));
    for (uint16_t i = 0; i < queues_.size(); ++i) {
      OrThrow(memory_.Fill(Gpa{i * kQueuePart}, kQueuePart, std::byte{0}));
      queues_[i] = std::make_unique<Queue>(memory_, Gpa{i * kQueuePart});
      function_->SetUpQueue(i, queues_[i]->ring.layout());
    }
    function_->EnableMsix();
    function_->GoLive();
  }
  // As a device process does once it is locked down.
  void Open() { OrThrow(model().ReadInput()); }
  void Start() {
    Open();
    function_->function().Resume();
    SetUp();
  }

  uint16_t Submit(uint16_t queue, uint32_t type, uint64_t sector, const std::vector<Buffer>& data) {
    Queue& q = *queues_[queue];
    struct {
      uint32_t type, reserved;
      uint64_t sector;
    } header{type, 0, sector};
    const Gpa slot = SlotOf(queue, q.next_slot);
    q.ring.Put(slot, header);
    q.ring.Put<uint8_t>(slot + 16, 0xEE);
    std::vector<Buffer> buffers{{slot, 16}};
    buffers.insert(buffers.end(), data.begin(), data.end());
    buffers.push_back({slot + 16, 1, true});
    const uint16_t head = q.ring.Add(buffers);
    q.slots[head] = q.next_slot;
    q.next_slot = (q.next_slot + 1) % kQueueSize;
    return head;
  }
  void Kick(uint16_t queue) { SignalEventFd(kicks_[queue].get()); }
  std::optional<BlkDone> Take(uint16_t queue) {
    Queue& q = *queues_[queue];
    const auto used = q.ring.TakeUsed();
    if (!used) return std::nullopt;
    const auto head = static_cast<uint16_t>(used->id);
    return BlkDone{head, q.ring.Get<uint8_t>(SlotOf(queue, q.slots[head]) + 16), used->length};
  }
  BlkDone Wait(uint16_t queue) {
    BlkDone done;
    WaitUntil([&] {
      const auto taken = Take(queue);
      if (taken) done = *taken;
      return taken.has_value();
    });
    return done;
  }
  // One request from start to end; its status.
  int Do(uint32_t type, uint64_t sector, const std::vector<Buffer>& data, uint16_t queue = 0) {
    const uint16_t head = Submit(queue, type, sector, data);
    Kick(queue);
    const BlkDone done = Wait(queue);
    EXPECT_EQ(done.head, head);
    return done.status;
  }
  int DoSegments(uint32_t type, const std::vector<BlkSegment>& segments) {
    OrThrow(memory_.Write(kData, std::as_bytes(std::span(segments))));
    return Do(type, 0, {{kData, static_cast<uint32_t>(segments.size() * sizeof(BlkSegment))}});
  }

  template <typename Condition>
  void WaitUntil(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "the device did not answer";
        return;
      }
      if (options_.sleep) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  FunctionDriver& function() { return *function_; }
  VirtioPci& model() { return function_->function(); }
  QueueDriver& ring(uint16_t queue) { return queues_[queue]->ring; }
  // A driver that outlives its device: takes over where the other one's rings stand.
  void TakeOverRings(DiskDriver& other) { queues_.swap(other.queues_); }
  std::vector<std::string> log() {
    std::lock_guard lock(log_mutex_);
    return log_;
  }

 private:
  struct Queue {
    Queue(const GuestMemory& memory, Gpa base) : ring(memory, base, kQueueSize) {}
    QueueDriver ring;
    std::array<uint16_t, kQueueSize> slots{};
    uint16_t next_slot = 0;
  };
  static Gpa SlotOf(uint16_t queue, uint16_t slot) { return Gpa{queue * kQueuePart + 0x8000 + 32u * slot}; }

  const GuestMemory& memory_;
  const DiskDriverOptions options_;
  std::mutex log_mutex_;
  std::vector<std::string> log_;
  std::vector<OwnFd> kicks_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::unique_ptr<FunctionDriver> function_;  // last: its threads use the log
};

}  // namespace bulkhead::device::test
