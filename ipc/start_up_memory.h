// SPDX-License-Identifier: Apache-2.0
// A process starts once and then does little for a long time: what only its start needed is given back. The pages of
// the program that are run again come back from the page cache by themselves, and with them their neighbours, some 64
// KiB for one fault. Main thread.
#pragma once

#include <kj/async.h>
#include <kj/timer.h>

#include "ipc/syscall_policy.h"

namespace bulkhead {

class StartUpMemory {
 public:
  explicit StartUpMemory(kj::Timer& timer) : timer_(timer) {}
  // The process is put to work, for the first time or again: gives back what it needed for that when it has been at
  // work for a while.
  void ForgetSoon();

 private:
  kj::Timer& timer_;
  kj::Promise<void> under_way_ = kj::READY_NOW;
};

// At once, for a process that has no event loop.
void ForgetStartUpMemory();

// What both need.
void AllowForgetting(SyscallPolicy& policy);

// This process and those that it starts get no transparent huge pages, in which a few used bytes take 2 MiB.
void RefuseHugePages();
// This process gets them again. Before lock-down.
void AllowHugePages();

}  // namespace bulkhead
