// SPDX-License-Identifier: Apache-2.0
// Starts a child process in namespaces of its own with exactly the descriptors it is born with. Broker, main thread
// (the only one: the new process is a copy of it until exec).
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "ipc/fd.h"

namespace bulkhead::broker {

// Where on the host a process is born.
struct Birthplace {
  OwnFd cgroup;                 // directory; invalid: the broker's own
  std::optional<uint32_t> uid;  // and group id, outside of its user namespace; none: the broker's own
  bool keeps_network = false;   // stays in the broker's network namespace
};

struct ChildProcess {
  pid_t pid = -1;
  OwnFd pidfd;
  OwnFd control;  // our end of its connection
  OwnFd log;      // read end of its stderr
};

// `executable` is the file of the child's kind; `title` becomes argv[0]. Throws FatalError, naming what the host
// forbids (user namespaces) and how to allow it.
ChildProcess SpawnChild(const std::string& executable, const std::string& title, const Birthplace& place);

}  // namespace bulkhead::broker
