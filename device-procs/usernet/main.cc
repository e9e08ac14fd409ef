// SPDX-License-Identifier: Apache-2.0
// bulkhead-usernet: user-mode networking, the outside of one net process. The one process of a VM that keeps the host's
// network; it holds nothing of the guest's but the packets that go through it.
#include "device-procs/common/runtime.h"
#include "device-procs/usernet/policy.h"
#include "device-procs/usernet/slirp/usernet.h"

int main(int argc, char** argv) {
  using namespace bulkhead;
  // As many connections as there are descriptors, each with 256 KiB at most, and packets on their way.
  constexpr size_t kHeapOfConnections = size_t{192} << 20;
  return device::RunDeviceProcess({.policy = usernet::UserNetPolicy(),
                                   .create = usernet::MakeUserNet,
                                   .heap_bytes = kHeapOfConnections,
                                   .scope = LandlockScope::kConnectionsAllowed},
                                  argc, argv);
}
