// SPDX-License-Identifier: Apache-2.0
// Loads a guest: kernel, initrd, command line and ACPI tables into guest memory, by the Linux boot protocol
// (Documentation/arch/x86/boot.rst, 2.15) or PVH (Xen's docs/misc/pvh.pandoc). vcpu-runner, main thread, after
// lock-down: the files are hostile, and only pread reaches them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ipc/guest_memory.h"
#include "ipc/result.h"
#include "vcpu-runner/cpu/registers.h"

namespace bulkhead::runner {

struct BootSources {
  int kernel_fd = -1;
  std::string kernel_name;  // for messages
  std::optional<int> initrd_fd;
  std::string initrd_name;
  std::string command_line;
};

struct Machine {
  uint64_t memory_bytes = 0;
  uint32_t vcpu_count = 1;
};

// The start state for vCPU 0. Guest memory is fresh: zero but for what this writes. An error is one line that names
// the file, what is wrong with it and what to do.
Result<StartState> LoadGuest(const GuestMemory& memory, const Machine& machine, const BootSources& sources);

}  // namespace bulkhead::runner
