// SPDX-License-Identifier: Apache-2.0
// A driver for modern virtio PCI functions (virtio 1.2 §4.1): split queues, one request in flight or many, polled or by
// MSI-X.
#pragma once

#include "tests/payload/lib/pci.h"

namespace payload {

inline constexpr uint16_t kVirtioVendor = 0x1AF4;
inline constexpr uint16_t kVirtioDeviceBase = 0x1040;
enum VirtioType : uint16_t { kVirtioNet = 1, kVirtioBlock = 2, kVirtioConsole = 3, kVirtioRng = 4 };
inline constexpr uint64_t kFeatureEventIndex = 1ull << 29;

// Fields of the common configuration structure (§4.1.4.3).
enum VirtioCommon : uint64_t {
  kDeviceFeatureSelect = 0x00,
  kDeviceFeature = 0x04,
  kDriverFeatureSelect = 0x08,
  kDriverFeature = 0x0C,
  kConfigVector = 0x10,
  kNumQueues = 0x12,
  kDeviceStatus = 0x14,
  kQueueSelect = 0x16,
  kQueueSize = 0x18,
  kQueueVector = 0x1A,
  kQueueEnable = 0x1C,
  kQueueNotifyOffset = 0x1E,
  kQueueDescriptors = 0x20,
  kQueueDriver = 0x28,
  kQueueDevice = 0x30,
};

struct Buffer {
  void* address;
  uint32_t bytes;
  bool device_writes;
};

class VirtioQueue {
 public:
  static constexpr uint16_t kSize = 64;
  static constexpr uint16_t kMaxSize = 256;

  // Adds a chain and returns its head; the descriptors are taken round about, so at most as many buffers as the queue
  // has descriptors are in flight.
  uint16_t Add(const Buffer* buffers, unsigned count);
  void Notify() const { Store<uint16_t>(notify_address_, index_); }
  // The same by hand: a chain in the descriptors from `first` on, made available as often as its owner likes.
  void Describe(uint16_t first, const Buffer* buffers, unsigned count);
  void Offer(uint16_t head);
  // Notifies of what was offered since the last time, if the device asks for that (§2.7.10).
  void NotifyIfAsked();
  // Asks the device for no interrupts (§2.7.7).
  void Silence();
  // A used chain, if there is one.
  bool TakeUsed(uint16_t* head, uint32_t* bytes);
  bool HasUsed() const;

 private:
  friend class VirtioDevice;
  struct Descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags;
    uint16_t next;
  };
  struct Available {
    uint16_t flags;
    uint16_t index;
    uint16_t ring[kMaxSize + 1];  // behind its last, the used event
  };
  struct Used {
    uint16_t flags;
    uint16_t index;
    struct {
      uint32_t head;
      uint32_t bytes;
    } ring[kMaxSize + 1];  // behind its last, the available event
  };

  alignas(16) Descriptor descriptors_[kMaxSize];
  alignas(16) Available available_;
  alignas(16) Used used_;
  uint16_t index_;
  uint16_t size_;
  bool event_index_;
  bool silent_;
  uint16_t notified_;  // the available index when the device was last told, or need not have been
  uint16_t next_descriptor_;
  uint16_t last_used_;
  uint64_t notify_address_;
};

class VirtioDevice {
 public:
  // Finds the n-th function of that type and its structures; false where there is none.
  bool Find(uint16_t type, unsigned n = 0);
  // Resets it and negotiates VERSION_1 and what of `wanted` it offers. False where the device refuses.
  bool Start(uint64_t wanted);
  // Sets up a queue, with an MSI-X vector of the device or none. Between Start and Ready.
  static constexpr uint16_t kNoVector = 0xFFFF;
  bool SetUpQueue(uint16_t index, VirtioQueue* queue, uint16_t vector = kNoVector, uint16_t size = VirtioQueue::kSize);
  void Ready();
  void Reset();

  uint64_t features() const { return features_; }
  uint64_t offered() const { return offered_; }
  uint16_t QueueCount() const { return Load<uint16_t>(common_ + kNumQueues); }
  uint8_t Status() const { return Load<uint8_t>(common_ + kDeviceStatus); }
  uint64_t common() const { return common_; }
  template <typename T>
  T Config(uint64_t offset) const {
    return Load<T>(config_ + offset);
  }
  PciFunction& pci() { return pci_; }

 private:
  PciFunction pci_;
  uint64_t common_ = 0, isr_ = 0, config_ = 0, notify_ = 0;
  uint32_t notify_multiplier_ = 0;
  uint64_t offered_ = 0, features_ = 0;
};

// For one request at a time: adds, notifies and waits by polling. False where nothing comes.
bool Transact(VirtioQueue* queue, const Buffer* buffers, unsigned count, uint32_t* used_bytes);

}  // namespace payload
