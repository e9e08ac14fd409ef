// SPDX-License-Identifier: Apache-2.0
// A driver's side of a virtqueue that is polled, as fast as a driver can be: the rings are reached in place. For
// benchmarks of a device process without a guest; one thread. One descriptor to a chain, and slot i is descriptor i.
#pragma once

#include <atomic>
#include <cstdint>

#include "device-procs/common/virtqueue.h"
#include "ipc/fd.h"

namespace bulkhead::bench {

class PolledQueue {
 public:
  struct Used {
    uint32_t slot = 0;
    uint32_t bytes = 0;
  };

  // `memory` is where guest physical address 0 is mapped. With an event index (virtio 1.2 §2.7.10); no interrupts.
  PolledQueue(std::byte* memory, Gpa at, uint16_t size)
      : layout_{.size = size,
                .descriptors = at,
                .available = at + 16u * size,
                .used = at + 0x4000,
                .event_index = true},
        descriptors_(reinterpret_cast<Descriptor*>(memory + layout_.descriptors.value)),
        available_(reinterpret_cast<uint16_t*>(memory + layout_.available.value)),
        used_(memory + layout_.used.value) {
    Silence();
  }

  const device::QueueLayout& layout() const { return layout_; }

  void Describe(uint16_t slot, Gpa address, uint32_t bytes, bool device_writes) {
    descriptors_[slot] = {address.value, bytes, static_cast<uint16_t>(device_writes ? 2 : 0), 0};
  }
  void Offer(uint16_t slot) {
    available_[2 + next_ % layout_.size] = slot;
    std::atomic_ref(available_[1]).store(++next_, std::memory_order_release);
  }
  // Whether the device wants to be told of what was offered since the last time.
  bool KickWanted() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const uint16_t event =
        std::atomic_ref(*reinterpret_cast<uint16_t*>(used_ + 4 + 8 * layout_.size)).load(std::memory_order_acquire);
    const auto offered = static_cast<uint16_t>(next_ - kicked_);
    kicked_ = next_;
    return static_cast<uint16_t>(next_ - event - 1) < offered;
  }
  bool Take(Used& used) {
    auto& index = *reinterpret_cast<uint16_t*>(used_ + 2);
    if (std::atomic_ref(index).load(std::memory_order_acquire) == taken_) return false;
    used = reinterpret_cast<const Used*>(used_ + 4)[taken_++ % layout_.size];
    Silence();
    return true;
  }

 private:
  struct Descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags;
    uint16_t next;
  };
  // An event half the indices away, which moves on with each chain taken.
  void Silence() { available_[2 + layout_.size] = static_cast<uint16_t>(taken_ + 0x8000); }

  device::QueueLayout layout_;
  Descriptor* descriptors_;
  uint16_t* available_;
  std::byte* used_;
  uint16_t next_ = 0, kicked_ = 0, taken_ = 0;
};

}  // namespace bulkhead::bench
