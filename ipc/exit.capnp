# SPDX-License-Identifier: Apache-2.0
# Frames of the exit plane: what a vCPU's exit asks of a device process and what comes back. One frame is one
# single-segment message without lists or pointers, so that it fits a ring slot and decodes in bounded time.
@0xec6b3fd25eb95f28;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::exit");

struct Request {
  # runner -> device process
  sequence @0 :UInt32;   # echoed by the reply
  region @1 :UInt16;     # which of the process's regions, in the order of its grants
  width @2 :UInt8;       # bytes: 1, 2, 4 or 8
  kind @3 :Kind;
  offset @4 :UInt64;     # bytes into the region
  data @5 :UInt64;       # value of a write, little-endian, in the low bytes

  enum Kind {
    read @0;
    write @1;            # waited for: the reply may carry an effect
    postedWrite @2;      # no reply
  }
}

struct Reply {
  # device process -> runner
  sequence @0 :UInt32;
  hasDecode @1 :Bool;      # the write moved, enabled or disabled the function's BAR 0
  memoryEnabled @2 :Bool;
  hasRoute @3 :Bool;       # the write changed the route of an MSI-X vector
  vector @4 :UInt16;
  data @5 :UInt64;         # value of a read
  bar0Address @6 :UInt64;
  routeAddress @7 :UInt64;
  routeData @8 :UInt32;
  deliver @9 :Bool;        # with hasRoute: raise the vector once the route is installed
}
