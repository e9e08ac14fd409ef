// SPDX-License-Identifier: Apache-2.0
// ACPI tables (ACPI 6.4 §5.2): the DSDT as iasl compiled it, and around it what depends on the machine. Main thread.
#pragma once

#include "ipc/guest_memory.h"
#include "vcpu-runner/boot/boot.h"

namespace bulkhead::runner {

// Writes all tables into the ACPI area; returns the address of the root pointer (RSDP).
Result<Gpa> WriteAcpiTables(const GuestMemory& memory, const Machine& machine);

}  // namespace bulkhead::runner
