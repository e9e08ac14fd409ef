// SPDX-License-Identifier: Apache-2.0
#include "device-procs/common/msix.h"

namespace bulkhead::device {
namespace {

constexpr uint64_t kEntryBytes = 16;
constexpr uint32_t kVectorMasked = 1;

}  // namespace

Msix::Msix(std::vector<OwnFd> interrupts) : interrupts_(std::move(interrupts)), announced_(interrupts_.size()) {
  state_.entries.resize(interrupts_.size());
  state_.pending.resize(interrupts_.size());
}

uint64_t Msix::ReadTable(uint64_t offset, uint8_t width) const {
  std::lock_guard lock(mutex_);
  if ((width != 4 && width != 8) || offset % width != 0 || offset / kEntryBytes >= state_.entries.size()) {
    return AllOnes(width);
  }
  const Entry& entry = state_.entries[offset / kEntryBytes];
  const bool upper = offset % kEntryBytes >= 8;
  const uint64_t quad = upper ? uint64_t{entry.control} << 32 | entry.data : entry.address;
  return width == 8 ? quad : static_cast<uint32_t>(quad >> (offset % 8 * 8));
}

std::optional<MsiRoute> Msix::WriteTable(uint64_t offset, uint8_t width, uint64_t value) {
  std::lock_guard lock(mutex_);
  if ((width != 4 && width != 8) || offset % width != 0 || offset / kEntryBytes >= state_.entries.size()) {
    return std::nullopt;
  }
  const auto vector = static_cast<uint16_t>(offset / kEntryBytes);
  Entry& entry = state_.entries[vector];
  const auto low = static_cast<uint32_t>(value);
  const auto high = static_cast<uint32_t>(value >> 32);
  switch (offset % kEntryBytes) {
    case 0:
      entry.address = width == 8 ? value : (entry.address & ~uint64_t{0xFFFF'FFFF}) | low;
      break;
    case 4:
      entry.address = (entry.address & 0xFFFF'FFFF) | uint64_t{low} << 32;
      break;
    case 8:
      entry.data = low;
      if (width == 8) entry.control = high & kVectorMasked;
      break;
    default:
      entry.control = low & kVectorMasked;
      break;
  }
  auto route = Announce(vector);
  if (!route) {
    DeliverPending(vector);
  } else if (state_.pending[vector] && Deliverable(vector)) {
    // Signalled from here it would race with the new route's installation.
    state_.pending[vector] = false;
    route->deliver = true;
  }
  return route;
}

uint64_t Msix::ReadPending(uint64_t offset, uint8_t width) const {
  std::lock_guard lock(mutex_);
  uint64_t value = 0;
  for (unsigned bit = 0; bit < width * 8u; ++bit) {
    const uint64_t vector = offset * 8 + bit;
    if (vector < state_.pending.size() && state_.pending[vector]) value |= uint64_t{1} << bit;
  }
  return value;
}

void Msix::SetControl(bool enabled, bool function_masked) {
  std::lock_guard lock(mutex_);
  state_.enabled = enabled;
  state_.function_masked = function_masked;
  for (uint16_t vector = 0; vector < interrupts_.size(); ++vector) DeliverPending(vector);
}

bool Msix::Deliverable(uint16_t vector) const {
  return state_.enabled && !state_.function_masked && (state_.entries[vector].control & kVectorMasked) == 0;
}

void Msix::DeliverPending(uint16_t vector) {
  if (!state_.pending[vector] || !Deliverable(vector)) return;
  state_.pending[vector] = false;
  SignalEventFd(interrupts_[vector].get());
}

std::optional<MsiRoute> Msix::Announce(uint16_t vector) {
  const Entry& entry = state_.entries[vector];
  if ((entry.control & kVectorMasked) != 0) return std::nullopt;
  auto& announced = announced_[vector];
  if (announced && announced->address == entry.address && announced->data == entry.data) return std::nullopt;
  announced = entry;
  return MsiRoute{.vector = vector, .address = entry.address, .data = entry.data};
}

void Msix::Signal(uint16_t vector) {
  std::lock_guard lock(mutex_);
  if (vector >= interrupts_.size() || !state_.enabled) return;
  if (Deliverable(vector)) {
    SignalEventFd(interrupts_[vector].get());
  } else {
    state_.pending[vector] = true;
  }
}

int Msix::DirectFd(uint16_t vector) const {
  std::lock_guard lock(mutex_);
  return vector < interrupts_.size() && Deliverable(vector) ? interrupts_[vector].get() : -1;
}

Msix::State Msix::Save() const {
  std::lock_guard lock(mutex_);
  return state_;
}

Result<void> Msix::Restore(State state) {
  std::lock_guard lock(mutex_);
  if (state.entries.size() != interrupts_.size() || state.pending.size() != interrupts_.size()) {
    return Error{EINVAL, "saved state has another number of interrupt vectors"};
  }
  state_ = std::move(state);
  // The runner kept its routes, and a vector that was unmasked had been announced.
  for (size_t i = 0; i < state_.entries.size(); ++i) {
    if ((state_.entries[i].control & kVectorMasked) == 0) announced_[i] = state_.entries[i];
  }
  return {};
}

}  // namespace bulkhead::device
