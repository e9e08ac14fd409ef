// SPDX-License-Identifier: Apache-2.0
// Opens the user's taps with the user's rights, or makes one on a bridge, and says in one line what is wrong. Launcher,
// main thread; throws FatalError.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "broker/launcher/options.h"
#include "broker/launcher/user_net.h"
#include "ipc/fd.h"

namespace bulkhead::launcher {

struct OpenNet {
  std::vector<OwnFd> queues;  // of one tap, which goes away with the last of them unless somebody made it persistent
  std::string name;
  uint16_t mtu = 0;
  std::optional<OpenUserNet> user = {};  // instead of a tap
};

// `cpus`: how many pairs of queues it gets unless the option says.
OpenNet OpenTap(const NetOption& net, uint32_t cpus);

}  // namespace bulkhead::launcher
