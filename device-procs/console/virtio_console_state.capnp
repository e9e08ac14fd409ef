# SPDX-License-Identifier: Apache-2.0
# What the virtio console saves beside its transport. Fields are only ever added; a reader of an older state sees their
# defaults.
@0x840a23265bc26098;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::device::state");

struct VirtioConsoleState {
  version @0 :UInt16;          # 1
  transmitDone @1 :UInt64;     # bytes of the next chain of the transmit queue that the outside has already taken
  emergency @2 :Data;          # bytes of emergency writes, not yet taken by the outside
}
