// SPDX-License-Identifier: Apache-2.0
#include "tests/payload/lib/virtio.h"

namespace payload {
namespace {

constexpr uint8_t kVendorCapability = 0x09;
constexpr uint8_t kAcknowledge = 1;
constexpr uint8_t kDriver = 2;
constexpr uint8_t kDriverOk = 4;
constexpr uint8_t kFeaturesOk = 8;
constexpr uint64_t kVersion1 = 1ull << 32;
constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kNoInterrupt = 1;  // of the available ring
constexpr uint16_t kNoNotify = 1;     // of the used ring

void Fence() { asm volatile("mfence" ::: "memory"); }

uint64_t Address(const volatile void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

uint16_t VirtioQueue::Add(const Buffer* buffers, unsigned count) {
  const uint16_t head = next_descriptor_;
  Describe(head, buffers, count);
  next_descriptor_ = static_cast<uint16_t>((head + count) % size_);
  Offer(head);
  return head;
}

void VirtioQueue::Describe(uint16_t first, const Buffer* buffers, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    const auto next = static_cast<uint16_t>((first + i + 1) % size_);
    uint16_t flags = buffers[i].device_writes ? kWrite : 0;
    if (i + 1 < count) flags |= kNext;
    descriptors_[(first + i) % size_] = {Address(buffers[i].address), buffers[i].bytes, flags, next};
  }
}

void VirtioQueue::Offer(uint16_t head) {
  available_.ring[available_.index % size_] = head;
  Fence();
  Store<uint16_t>(Address(&available_.index), static_cast<uint16_t>(available_.index + 1));
  Fence();
}

void VirtioQueue::NotifyIfAsked() {
  const auto offered = static_cast<uint16_t>(available_.index - notified_);
  if (offered == 0) return;
  bool asked = (Load<uint16_t>(Address(&used_.flags)) & kNoNotify) == 0;
  if (event_index_) {
    const auto event = Load<uint16_t>(Address(&used_.ring[size_]));
    asked = static_cast<uint16_t>(available_.index - event - 1) < offered;
  }
  notified_ = available_.index;
  if (asked) Notify();
}

// With the event index an event half the indices away, which moves on with each chain taken.
void VirtioQueue::Silence() {
  silent_ = true;
  if (event_index_) {
    Store<uint16_t>(Address(&available_.ring[size_]), static_cast<uint16_t>(last_used_ + 0x8000));
  } else {
    Store<uint16_t>(Address(&available_.flags), kNoInterrupt);
  }
}

bool VirtioQueue::HasUsed() const { return Load<uint16_t>(Address(&used_.index)) != last_used_; }

bool VirtioQueue::TakeUsed(uint16_t* head, uint32_t* bytes) {
  if (!HasUsed()) return false;
  Fence();
  const uint64_t element = Address(&used_.ring[last_used_ % size_]);
  *head = static_cast<uint16_t>(Load<uint32_t>(element));
  *bytes = Load<uint32_t>(element + 4);
  ++last_used_;
  if (silent_) Silence();
  return true;
}

bool VirtioDevice::Find(uint16_t type, unsigned n) {
  if (!FindPci(kVirtioVendor, static_cast<uint16_t>(kVirtioDeviceBase + type), &pci_, n)) return false;
  for (unsigned i = 0;; ++i) {
    const unsigned at = pci_.Capability(kVendorCapability, i);
    if (at == 0) break;
    const uint8_t structure = pci_.Read<uint8_t>(at + 3);
    if (structure < 1 || structure > 4) continue;
    const uint64_t address = pci_.MapBar(pci_.Read<uint8_t>(at + 4)) + pci_.Read<uint32_t>(at + 8);
    switch (structure) {
      case 1:
        common_ = address;
        break;
      case 2:
        notify_ = address;
        notify_multiplier_ = pci_.Read<uint32_t>(at + 16);
        break;
      case 3:
        isr_ = address;
        break;
      case 4:
        config_ = address;
        break;
      default:
        break;
    }
  }
  return common_ != 0 && notify_ != 0 && isr_ != 0;
}

void VirtioDevice::Reset() {
  Store<uint8_t>(common_ + kDeviceStatus, 0);
  Await([this] { return Status() == 0; });
}

bool VirtioDevice::Start(uint64_t wanted) {
  Reset();
  Store<uint8_t>(common_ + kDeviceStatus, kAcknowledge);
  Store<uint8_t>(common_ + kDeviceStatus, kAcknowledge | kDriver);
  offered_ = 0;
  for (uint32_t half = 0; half < 2; ++half) {
    Store<uint32_t>(common_ + kDeviceFeatureSelect, half);
    offered_ |= uint64_t{Load<uint32_t>(common_ + kDeviceFeature)} << 32 * half;
  }
  features_ = offered_ & (wanted | kVersion1);
  for (uint32_t half = 0; half < 2; ++half) {
    Store<uint32_t>(common_ + kDriverFeatureSelect, half);
    Store<uint32_t>(common_ + kDriverFeature, static_cast<uint32_t>(features_ >> 32 * half));
  }
  Store<uint8_t>(common_ + kDeviceStatus, kAcknowledge | kDriver | kFeaturesOk);
  return (features_ & kVersion1) != 0 && (Status() & kFeaturesOk) != 0;
}

bool VirtioDevice::SetUpQueue(uint16_t index, VirtioQueue* queue, uint16_t vector, uint16_t size) {
  __builtin_memset(static_cast<void*>(queue), 0, sizeof *queue);
  queue->size_ = size;
  queue->event_index_ = (features_ & kFeatureEventIndex) != 0;
  Store<uint16_t>(common_ + kQueueSelect, index);
  if (size > VirtioQueue::kMaxSize || Load<uint16_t>(common_ + kQueueSize) < size) return false;
  Store<uint16_t>(common_ + kQueueSize, size);
  Store<uint16_t>(common_ + kQueueVector, vector);
  if (Load<uint16_t>(common_ + kQueueVector) != vector) return false;
  const auto set = [this](uint64_t field, uint64_t address) {
    Store<uint32_t>(common_ + field, static_cast<uint32_t>(address));
    Store<uint32_t>(common_ + field + 4, static_cast<uint32_t>(address >> 32));
  };
  set(kQueueDescriptors, Address(queue->descriptors_));
  set(kQueueDriver, Address(&queue->available_));
  set(kQueueDevice, Address(&queue->used_));
  queue->index_ = index;
  queue->notify_address_ = notify_ + uint64_t{Load<uint16_t>(common_ + kQueueNotifyOffset)} * notify_multiplier_;
  Store<uint16_t>(common_ + kQueueEnable, 1);
  return Load<uint16_t>(common_ + kQueueEnable) == 1;
}

void VirtioDevice::Ready() {
  Store<uint8_t>(common_ + kDeviceStatus, kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
}

bool Transact(VirtioQueue* queue, const Buffer* buffers, unsigned count, uint32_t* used_bytes) {
  const uint16_t head = queue->Add(buffers, count);
  queue->Notify();
  uint16_t used_head;
  if (!Await([&] { return queue->TakeUsed(&used_head, used_bytes); })) return false;
  return used_head == head;
}

}  // namespace payload
