// SPDX-License-Identifier: Apache-2.0
// ACPI tables by the root pointer of the zero page (ACPI 6.4 §5.2).
#pragma once

#include "tests/payload/lib/payload.h"

namespace payload {

// Address of the table with that signature, its checksum verified and those of all that lead to it; 0 and a
// printed failure of `name` otherwise.
uint64_t FindAcpiTable(const char* name, const char* signature);

}  // namespace payload
