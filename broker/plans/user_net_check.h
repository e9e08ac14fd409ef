// SPDX-License-Identifier: Apache-2.0
// Whether what a launcher asks for of user-mode networking can be. Broker, main thread. The launcher may be anyone:
// hostile.
#pragma once

#include <string>

#include "ipc/control.capnp.h"

namespace bulkhead::broker {

// `listeners`: how many sockets came with it; `name`: of the process. Throws FatalError.
void CheckUserNet(control::UserNet::Reader net, unsigned listeners, const std::string& name);

}  // namespace bulkhead::broker
