// SPDX-License-Identifier: Apache-2.0
// Opens the kernel's vhost-net with the user's rights. Launcher, main thread.
#pragma once

#include <string>

#include "ipc/fd.h"

namespace bulkhead::launcher {

// For one pair of queues, and nobody's yet. Throws FatalError, which says what to do about it; `subject` is who needs
// it.
OwnFd OpenVhostNet(const std::string& subject);

}  // namespace bulkhead::launcher
