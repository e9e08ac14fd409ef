// SPDX-License-Identifier: Apache-2.0
// The host's KVM device: the one place that opens it. Broker, main thread.
#pragma once

#include "ipc/fd.h"

namespace bulkhead::broker {

// Throws FatalError that names cause and cure: no device, no permission, no hardware support.
OwnFd OpenKvm();

}  // namespace bulkhead::broker
