// SPDX-License-Identifier: Apache-2.0
// How `bulkhead inspect` shows what it found: a table and a paragraph per process, or JSON. Launcher, main thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "broker/launcher/expectations.h"
#include "broker/launcher/interface_facts.h"
#include "broker/launcher/seccomp_facts_walk.h"
#include "ipc/result.h"

namespace bulkhead::launcher {

// A process's system call filter: its program, or why it is not known.
using FilterReading = Result<std::string>;

struct Inspection {
  VmFacts vm;
  std::string state;                   // "running"
  std::vector<FilterReading> filters;  // of the processes, in their order
  Interfaces interfaces;
};

// Whether this user may see no more of a filter than that there is one.
bool NeedsRoot(const FilterReading& reading);

std::string FormatTable(const Inspection& inspection);
nlohmann::json FormatJson(const Inspection& inspection);

}  // namespace bulkhead::launcher
