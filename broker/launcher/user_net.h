// SPDX-License-Identifier: Apache-2.0
// What user-mode networking needs of the user's host: the ports that are forwarded to the guest, bound with the user's
// rights before anything else is started, and the addresses of the host's resolvers. Launcher, main thread; throws
// FatalError.
#pragma once

#include <string>
#include <vector>

#include "broker/launcher/options.h"
#include "ipc/control.capnp.h"
#include "ipc/fd.h"

namespace bulkhead::launcher {

struct OpenUserNet {
  std::vector<OwnFd> listeners;  // of the option's host forwards
  AddressBytes dns4, dns6;       // empty: none
};

OpenUserNet OpenUserNetwork(const UserNetOption& option);

// The first resolver of each family in the text of a resolv.conf(5). One with a zone (fe80::1%eth0) is left out: what
// it means only the host itself can know.
void FindResolvers(const std::string& text, OpenUserNet& net);

void FillUserNet(const UserNetOption& option, const OpenUserNet& net, uint16_t mtu, control::UserNet::Builder out);

}  // namespace bulkhead::launcher
