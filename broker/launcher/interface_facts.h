// SPDX-License-Identifier: Apache-2.0
// What the network interfaces of a running VM have carried. Unlike all else that `bulkhead inspect` shows it is the
// word of the interface's own process, which may be hostile: numbers. Launcher, main thread.
#pragma once

#include <kj/async-io.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "ipc/broker.capnp.h"

namespace bulkhead::launcher {

struct TrafficFacts {
  uint64_t packets = 0;
  uint64_t bytes = 0;
  uint64_t dropped = 0;
  uint64_t refused = 0;  // of these
};

struct InterfaceFacts {
  control::LinkState link = control::LinkState::UP;
  std::optional<TrafficFacts> received;  // by the guest; nothing where the kernel carries and counts the packets
  std::optional<TrafficFacts> sent;
};

// By the names of their processes; nothing of one whose process does not answer.
using Interfaces = std::map<std::string, std::optional<InterfaceFacts>>;

// None if the VM does not answer, or ends meanwhile.
Interfaces AskForInterfaces(kj::AsyncIoContext& io, control::VmControl::Client vm);

// "up", "down", ...
const char* LinkName(control::LinkState link);

}  // namespace bulkhead::launcher
