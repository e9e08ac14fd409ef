// SPDX-License-Identifier: Apache-2.0
// What `bulkhead check` finds out about a host's KVM by trying it. Probe process, main thread.
#pragma once

#include <string>
#include <vector>

#include "ipc/broker.capnp.h"

namespace bulkhead::probe {

struct CheckResult {
  std::string name;
  control::ProbeReport::Status status;
  std::string detail;
};

// Everything worth trying, in the order a reader wants it.
std::vector<CheckResult> RunChecks(int kvm_fd);

// Whether unmodified kernels can run: every check that bears on it is ok.
bool StockKernelsRun(const std::vector<CheckResult>& results);

}  // namespace bulkhead::probe
