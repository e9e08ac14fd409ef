// SPDX-License-Identifier: Apache-2.0
// The system call filter that a process of a kind must have: what its executable itself says when it is asked (the
// argument --policy=bpf), against what the kernel says of the running process. Launcher, main thread.
#pragma once

#include <string>
#include <vector>

#include "ipc/result.h"

namespace bulkhead::launcher {

// The filter's BPF programs of an executable, any of which is right: one reports a forbidden call to the broker before
// the process is killed, the other kills at once, where the kernel cannot report.
Result<std::vector<std::string>> ExpectedFilters(const std::string& executable);

}  // namespace bulkhead::launcher
