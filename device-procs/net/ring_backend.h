// SPDX-License-Identifier: Apache-2.0
// A network interface's outside as another process at the end of a packet link (ipc/packet_ring.h): one pair of queues,
// no offloads. What that process does to the rings is hostile; a ring that it broke is as good as an outside that is
// gone.
#pragma once

#include <memory>

#include "device-procs/common/runtime.h"
#include "device-procs/net/backend.h"

namespace bulkhead::device {

// Before lock-down; throws FatalError.
std::unique_ptr<NetBackend> MakeRingBackend(PacketResources packets);

}  // namespace bulkhead::device
