// SPDX-License-Identifier: Apache-2.0
// What tests of vhost ask of the host.
#pragma once

#include <sys/types.h>

#include <string>

namespace bulkhead::test {

// Why no packets can be carried by vhost here; empty if they can.
std::string WhyNoVhost();
// Whether the kernel has threads for vhosts of this process; older kernels keep them outside of it.
bool HasVhostThreads(pid_t pid);

}  // namespace bulkhead::test
