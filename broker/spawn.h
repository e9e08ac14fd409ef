// SPDX-License-Identifier: Apache-2.0
// Starts a child process in namespaces of its own with exactly the descriptors it is born with. Broker, main thread
// (the only one: the new process is a copy of it until exec).
#pragma once

#include <sys/types.h>

#include <string>

#include "ipc/fd.h"

namespace bulkhead::broker {

// Outer user ids that children get when the broker runs as root: kChildUidBase + process id, so that no two live
// processes share one. The range is far above what distributions hand out.
inline constexpr uint32_t kChildUidBase = 0x7000'0000;

struct ChildProcess {
  pid_t pid = -1;
  OwnFd pidfd;
  OwnFd control;  // our end of its connection
  OwnFd log;      // read end of its stderr
};

// `executable` is the file of the child's kind; `title` becomes argv[0]. Throws FatalError, naming what the host
// forbids (user namespaces) and how to allow it.
ChildProcess SpawnChild(const std::string& executable, const std::string& title);

}  // namespace bulkhead::broker
