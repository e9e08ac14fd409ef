// SPDX-License-Identifier: Apache-2.0
// What every child of the broker does first and last: empty root, name, event loop; and how it reports an error. The
// broker takes its name here too. Main thread.
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <initializer_list>
#include <string>

#include "ipc/control.capnp.h"
#include "ipc/guest_memory.h"
#include "ipc/landlock.h"
#include "ipc/sandbox.h"
#include "ipc/syscall_policy.h"

namespace bulkhead {

// Far more than any child but a disk ever used; only address space until it is.
inline constexpr size_t kHeapBytes = size_t{32} << 20;

// The walls of a child, closed in two steps: what needs nothing at once, the rest when it has its grants.
class ChildSandbox {
 public:
  // Empty root, no capabilities, no paths.
  explicit ChildSandbox(LandlockScope scope);
  // Heap, limits, no core dumps, and last the filter on all threads. Once; before anything hostile is read.
  void Close(control::SandboxGrant::Reader grant, std::initializer_list<ResourceLimit> limits,
             const SyscallPolicy& policy, size_t heap_bytes = kHeapBytes);
  void Report(control::SandboxReport::Builder report) const;
  // The broker has taken what Report told it of.
  void Reported() { listener_.Close(); }

 private:
  bool has_landlock_ = false;
  OwnFd listener_;
};

// A child's whole main: leaves the host's file system, takes the name the broker gave in argv[0], and runs `body`; an
// exception becomes one line on stderr (the broker's log) and exit status 1. With the argument --policy it prints the
// policy instead, with --policy=bpf the filter's program when violations are reported, with --policy=bpf-kill when they
// are not.
using ChildBody = std::function<void(kj::AsyncIoContext&, ChildSandbox&)>;
int RunChild(int argc, char** argv, const SyscallPolicy& policy, const ChildBody& body,
             LandlockScope scope = LandlockScope::kAll);

// Gives this process the kernel's name for short lists: "bulkhead:web1 disk0" as far as 15 characters go, the device's
// name whole.
void NameProcess(const std::string& title);

// Maps the guest memory of a grant, whose writes are logged where that says so.
GuestMemory MapGrantedMemory(control::MemoryGrant::Reader grant, kj::WaitScope& wait);

// Writes one line to stderr in one call, at most kLogLinesPerSecond lines a second (a guest may be what triggers
// them); what was left out is counted in the next line that goes through. Any thread.
inline constexpr int kLogLinesPerSecond = 10;
void LogLine(const std::string& line);

}  // namespace bulkhead
