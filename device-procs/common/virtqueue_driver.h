// SPDX-License-Identifier: Apache-2.0
// The driver's side of a split virtqueue in guest memory, for tests and fuzzers: it does what a driver does, and can be
// told to do what none should. One thread.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device-procs/common/virtqueue.h"
#include "ipc/fd.h"
#include "ipc/guest_memory.h"

namespace bulkhead::device::test {

// Guest memory of its own, from address 0.
inline GuestMemory MakeGuestMemory(uint64_t size_bytes) {
  const OwnFd file = OrThrow(MakeSealedMemory("test-guest", size_bytes));
  const MemoryRegion region{Gpa{0}, size_bytes, 0};
  return OrThrow(GuestMemory::Map(file.get(), std::span(&region, 1)));
}

inline constexpr uint16_t kNext = 1;
inline constexpr uint16_t kWrite = 2;
inline constexpr uint16_t kIndirect = 4;

struct Buffer {
  Gpa address;
  uint32_t length = 0;
  bool writable = false;
};

struct Used {
  uint32_t id = 0;
  uint32_t length = 0;
  bool operator==(const Used&) const = default;
};

struct RawDescriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};

class QueueDriver {
 public:
  // The three parts follow each other from `base`, which is page aligned.
  QueueDriver(const GuestMemory& memory, Gpa base, uint16_t size, bool event_index = false) : memory_(memory) {
    layout_.size = size;
    layout_.descriptors = base;
    layout_.available = base + 16 * uint64_t{size};
    layout_.used = Gpa{(layout_.available.value + 6 + 2 * uint64_t{size} + 3) & ~uint64_t{3}};
    layout_.event_index = event_index;
  }

  // The same queue, where its memory has moved to.
  QueueDriver(const GuestMemory& memory, const QueueDriver& other)
      : memory_(memory),
        layout_(other.layout_),
        free_(other.free_),
        available_(other.available_),
        taken_(other.taken_) {}

  const QueueLayout& layout() const { return layout_; }

  void SetDescriptor(uint16_t index, RawDescriptor descriptor) {
    Put(layout_.descriptors + 16 * uint64_t{index}, descriptor);
  }
  // Writes an indirect table at `table` and returns the descriptor that names it.
  RawDescriptor MakeTable(Gpa table, std::initializer_list<RawDescriptor> entries) {
    uint64_t at = 0;
    for (const RawDescriptor& entry : entries) {
      Put(table + at, entry);
      at += 16;
    }
    return {table.value, static_cast<uint32_t>(at), kIndirect, 0};
  }

  // Makes a head available; its descriptors have been written.
  void Offer(uint16_t head) {
    Put<uint16_t>(layout_.available + 4 + 2 * uint64_t{static_cast<uint16_t>(available_ % layout_.size)}, head);
    SetAvailableIndex(++available_);
  }
  // Writes a chain of direct descriptors into the next free ones, offers it and returns its head.
  uint16_t Add(const std::vector<Buffer>& buffers) {
    const auto head = static_cast<uint16_t>(free_ % layout_.size);
    for (size_t i = 0; i < buffers.size(); ++i) {
      const auto index = static_cast<uint16_t>(free_++ % layout_.size);
      const bool last = i + 1 == buffers.size();
      SetDescriptor(index, {buffers[i].address.value, buffers[i].length,
                            static_cast<uint16_t>((last ? 0 : kNext) | (buffers[i].writable ? kWrite : 0)),
                            static_cast<uint16_t>(free_ % layout_.size)});
    }
    Offer(head);
    return head;
  }
  std::optional<Used> TakeUsed() {
    if (UsedIndex() == taken_) return std::nullopt;
    return Get<Used>(layout_.used + 4 + 8 * uint64_t{static_cast<uint16_t>(taken_++ % layout_.size)});
  }

  uint16_t available_index() const { return available_; }
  void SetAvailableIndex(uint16_t index) {
    available_ = index;
    Put(layout_.available + 2, index);
  }
  void SetAvailableFlags(uint16_t flags) { Put(layout_.available, flags); }
  void SetUsedEvent(uint16_t event) { Put(layout_.available + 4 + 2 * uint64_t{layout_.size}, event); }
  uint16_t UsedFlags() const { return Get<uint16_t>(layout_.used); }
  uint16_t UsedIndex() const { return Get<uint16_t>(layout_.used + 2); }
  uint16_t AvailableEvent() const { return Get<uint16_t>(layout_.used + 4 + 8 * uint64_t{layout_.size}); }

  template <typename T>
  void Put(Gpa address, const T& value) {
    OrThrow(memory_.WriteObject(address, value));
  }
  template <typename T>
  T Get(Gpa address) const {
    return OrThrow(memory_.ReadObject<T>(address));
  }
  void PutText(Gpa address, std::string_view text) { OrThrow(memory_.Write(address, std::as_bytes(std::span(text)))); }
  std::string GetText(Gpa address, size_t length) const {
    std::string text(length, '\0');
    OrThrow(memory_.Read(address, std::as_writable_bytes(std::span(text))));
    return text;
  }

 private:
  const GuestMemory& memory_;
  QueueLayout layout_;
  uint16_t free_ = 0;
  uint16_t available_ = 0;
  uint16_t taken_ = 0;
};

}  // namespace bulkhead::device::test
