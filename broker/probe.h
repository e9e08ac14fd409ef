// SPDX-License-Identifier: Apache-2.0
// Runs the probe process: what this host's KVM can do, found out by trying, in a sandbox like the runner's. Broker,
// main thread.
#pragma once

#include <kj/async-io.h>

#include <string>

#include "ipc/broker.capnp.h"

namespace bulkhead::broker {

// Fills `out`; a host without a usable KVM is a report with a failed check, not an error.
void Probe(kj::AsyncIoContext& io, const std::string& helpers, control::ProbeReport::Builder out);

}  // namespace bulkhead::broker
