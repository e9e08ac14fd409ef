// SPDX-License-Identifier: Apache-2.0
// The device in a usernet process: no registers, no queues, only what the broker asks of each. Made on the main thread
// before lock-down; then the device thread.
#pragma once

#include <memory>

#include "device-procs/common/runtime.h"

namespace bulkhead::usernet {

// Takes settings, sockets and packet link from the grants; throws FatalError.
std::unique_ptr<device::DeviceModel> MakeUserNet(device::DeviceContext context);

}  // namespace bulkhead::usernet
