// SPDX-License-Identifier: Apache-2.0
// The PCI host bridge's own function, 00:00.0: configuration space and nothing behind it (PCI 3.0 §6.1,
// PCIe 4.0 §7.5.1). Guests identify the bus by it. Chipset process, device thread; all values are hostile.
#pragma once

#include <cstdint>

#include "device-procs/chipset/chipset_state.capnp.h"

namespace bulkhead::chipset {

class HostBridge {
 public:
  HostBridge();

  uint64_t Read(uint64_t offset, uint8_t width) const;
  void Write(uint64_t offset, uint8_t width, uint64_t value);

  void Save(state::HostBridgeState::Builder state) const { state.setCommand(command_); }
  void Restore(state::HostBridgeState::Reader state);

 private:
  uint8_t Byte(uint64_t offset) const;

  uint16_t command_;
};

}  // namespace bulkhead::chipset
