# SPDX-License-Identifier: Apache-2.0
# What a disk saves beside its transport; nothing is in flight then. Fields are only ever added; a reader of an older
# state sees their defaults.
@0xb3a6e2f8470d915c;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::device::state");

struct DiskState {
  version @0 :UInt16;          # 1
  capacitySectors @1 :UInt64;  # of 512 bytes; a state is never loaded over a disk of another size
  writeback @2 :Bool;          # the driver's choice of cache mode
}
