// SPDX-License-Identifier: Apache-2.0
// The regions of the chipset process in the order of its grants. Shared with the broker, which registers them
// in this order; constants only.
#pragma once

#include <array>
#include <cstdint>

#include "ipc/platform.h"

namespace bulkhead::chipset {

enum class Region : uint16_t {
  kCmos,
  kI8042Data,
  kI8042Status,
  kPostCode,
  kDebugConsole,
  kPm1aEvent,
  kPm1aControl,
  kPmTimer,
  kResetControl,
  kHostBridge,  // configuration space of the PCI function 00:00.0, the only one that is not I/O ports
};

struct PortRegion {
  Region region;
  uint16_t port;
  uint16_t count;
};

inline constexpr std::array<PortRegion, 9> kPortRegions = {{
    {Region::kCmos, platform::kPortCmosIndex, 2},
    {Region::kI8042Data, platform::kPortI8042Data, 1},
    {Region::kI8042Status, platform::kPortI8042Status, 1},
    {Region::kPostCode, platform::kPortPostCode, 1},
    {Region::kDebugConsole, platform::kPortDebugConsole, 1},
    {Region::kPm1aEvent, platform::kPortPm1aEvent, 4},
    {Region::kPm1aControl, platform::kPortPm1aControl, 2},
    {Region::kPmTimer, platform::kPortPmTimer, 4},
    {Region::kResetControl, platform::kPortResetControl, 1},
}};

inline constexpr uint64_t kHostBridgeConfigBytes = 4096;  // PCIe 4.0 §7.2.2

}  // namespace bulkhead::chipset
