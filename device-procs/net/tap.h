// SPDX-License-Identifier: Apache-2.0
// A network interface's outside as one of the kernel's taps: one descriptor for each pair of queues, each packet one
// system call that moves it between the tap and guest memory.
#pragma once

#include <memory>
#include <vector>

#include "device-procs/net/backend.h"
#include "ipc/fd.h"

namespace bulkhead::device {

// Of a tap that was opened without packet information, with headers of PacketHeader's form, non-blocking; where there
// is more than one descriptor, with many queues. Throws FatalError where it is not: before lock-down.
std::unique_ptr<NetBackend> MakeTap(std::vector<OwnFd> queues);

}  // namespace bulkhead::device
