// SPDX-License-Identifier: Apache-2.0
// Opens the kernel's vhost-net with the user's rights. Launcher, main thread.
#pragma once

#include <string>

#include "ipc/broker.capnp.h"
#include "ipc/fd.h"

namespace bulkhead::launcher {

// For one pair of queues, and nobody's yet. Throws FatalError, which says what to do about it; `subject` is who needs
// it.
OwnFd OpenVhostNet(const std::string& subject);

// For who needs one now and then. None is kept: one belongs for ever to the process that took it, and what it does for
// that ends with the last descriptor.
control::FileSource::Client MakeVhostNetSource();

}  // namespace bulkhead::launcher
