// SPDX-License-Identifier: Apache-2.0
// What every child of the broker does first and last: empty root, name, event loop; and how it reports an error. The
// broker takes its name here too. Main
// thread.
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <string>

#include "ipc/control.capnp.h"
#include "ipc/guest_memory.h"

namespace bulkhead {

// Leaves the host's file system, takes the name the broker gave in argv[0], and runs `body`; an exception becomes one
// line on stderr (the broker's log) and exit status 1.
int RunChild(int argc, char** argv, const std::function<void(kj::AsyncIoContext&)>& body);

// Gives this process the kernel's name for short lists: "bulkhead:web1 disk0" as far as 15 characters go, the device's
// name whole.
void NameProcess(const std::string& title);

// Maps the guest memory of a grant.
GuestMemory MapGrantedMemory(control::MemoryGrant::Reader grant, kj::WaitScope& wait);

// Writes one line to stderr in one call, at most kLogLinesPerSecond lines a second (a guest may be what triggers
// them); what was left out is counted in the next line that goes through. Any thread.
inline constexpr int kLogLinesPerSecond = 10;
void LogLine(const std::string& line);

}  // namespace bulkhead
