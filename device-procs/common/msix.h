// SPDX-License-Identifier: Apache-2.0
// The MSI-X table and pending bits of one PCI function (PCIe 4.0 §7.7.2). Register accesses come on the device thread;
// Signal from any thread of the process. Register values are the guest's: hostile.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "device-procs/common/device_model.h"
#include "ipc/fd.h"

namespace bulkhead::device {

class Msix {
 public:
  struct Entry {
    uint64_t address = 0;
    uint32_t data = 0;
    uint32_t control = 1;  // bit 0: masked, as after reset
  };
  struct State {
    bool enabled = false;
    bool function_masked = false;
    std::vector<Entry> entries{};
    std::vector<bool> pending{};
  };

  // One eventfd for each vector; the runner has connected them.
  explicit Msix(std::vector<OwnFd> interrupts);

  uint16_t vector_count() const { return static_cast<uint16_t>(interrupts_.size()); }

  // The table at its start, and the pending bits at theirs; `width` 4 or 8, aligned, else all ones and no effect.
  uint64_t ReadTable(uint64_t offset, uint8_t width) const;
  std::optional<MsiRoute> WriteTable(uint64_t offset, uint8_t width, uint64_t value);
  uint64_t ReadPending(uint64_t offset, uint8_t width) const;
  // The enable and function mask bits of the capability's message control word.
  void SetControl(bool enabled, bool function_masked);

  // Interrupts the guest through a vector, now or when it is unmasked. A vector that does not exist is
  // VIRTIO_MSI_NO_VECTOR: nothing happens. Nothing happens either while MSI-X is not enabled.
  void Signal(uint16_t vector);
  // The eventfd that alone is enough for that now; -1: none is, and Signal says what becomes of an interrupt.
  int DirectFd(uint16_t vector) const;

  State Save() const;
  // EINVAL where the state is of another number of vectors.
  Result<void> Restore(State state);

 private:
  bool Deliverable(uint16_t vector) const;
  void DeliverPending(uint16_t vector);
  std::optional<MsiRoute> Announce(uint16_t vector);

  mutable std::mutex mutex_;
  std::vector<OwnFd> interrupts_;
  State state_;
  std::vector<std::optional<Entry>> announced_;  // what the runner was last told of each vector
};

}  // namespace bulkhead::device
