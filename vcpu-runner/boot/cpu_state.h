// SPDX-License-Identifier: Apache-2.0
// Start states and the tables in guest memory that they need. Main thread.
#pragma once

#include "ipc/guest_memory.h"
#include "vcpu-runner/cpu/registers.h"

namespace bulkhead::runner {

// 64-bit mode with the first 4 GiB identity-mapped, RSI at the zero page (boot.rst, "64-bit boot protocol").
Result<StartState> LongModeState(const GuestMemory& memory, uint64_t entry, Gpa boot_params);
// 32-bit protected mode, paging off, flat segments. `rsi` for the 32-bit boot protocol, `rbx` for PVH.
Result<StartState> ProtectedModeState(const GuestMemory& memory, uint32_t entry, Gpa rsi, Gpa rbx);

}  // namespace bulkhead::runner
