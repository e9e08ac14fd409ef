// SPDX-License-Identifier: Apache-2.0
// Starts a child process in namespaces of its own with exactly the descriptors it is born with. Spawner, and broker for
// what is no VM's; main thread (the only one: the new process is a copy of it until exec).
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
  OwnFd spare;    // our end of the socket by which it gets the connection to another broker (ipc/broker_link.h)
};

// The file of a child's kind, to be started now or later. Throws FatalError.
OwnFd OpenProgram(const std::string& executable);

// `title` becomes argv[0]. Throws FatalError, naming what the host forbids (user namespaces) and how to allow it.
ChildProcess SpawnProgram(const OwnFd& program, const std::string& title, const Birthplace& place);
// The same with a program that is named.
ChildProcess SpawnChild(const std::string& executable, const std::string& title, const Birthplace& place);

}  // namespace bulkhead::broker
