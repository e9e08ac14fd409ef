// SPDX-License-Identifier: Apache-2.0
// The system call filter of another process, as the kernel has it: the classic BPF program of its main thread, read
// through ptrace. Needs CAP_SYS_ADMIN in the host's user namespace, and a caller who is not filtered itself (seccomp
// refuses to show filters to others). Launcher, main thread.
#pragma once

#include <sys/types.h>

#include <string>

#include "ipc/result.h"

namespace bulkhead::launcher {

// The program, struct sock_filter after struct sock_filter. EPERM or EACCES: this user may not see it. Stops the main
// thread for less than a millisecond and no other thread; it goes on in any case: should this process die meanwhile,
// the kernel lets go of it. A process with no filter or with more than one is an error, since one is what is expected.
Result<std::string> ReadSeccompProgram(pid_t pid);

}  // namespace bulkhead::launcher
