# SPDX-License-Identifier: Apache-2.0
# What a network interface saves beside its transport; no packet is in hand then. Fields are only ever added; a reader of
# an older state sees their defaults.
@0xa4a1f3f7f0c1d3b5;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::device::state");

struct CoalesceState {
  maxPackets @0 :UInt32;
  maxMicroseconds @1 :UInt32;
}

struct NetState {
  version @0 :UInt16;          # 1
  mac @1 :Data;                # as the driver may have changed it
  activePairs @2 :UInt16;
  promiscuous @3 :Bool;
  allMulticast @4 :Bool;
  unicast @5 :List(Data);      # addresses that are taken in beside its own
  multicast @6 :List(Data);
  vlans @7 :Data;              # a bit for each of 4096; empty: none
  linkOff @8 :Bool;            # by the VM's user
  offloadsOff @9 :UInt64;      # feature bits of what was negotiated for receiving, and the driver does without
  receiveCoalescing @10 :CoalesceState;    # of notifications, as the driver asked for; none is held back now
  transmitCoalescing @11 :CoalesceState;
}
