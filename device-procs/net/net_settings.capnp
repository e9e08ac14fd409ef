# SPDX-License-Identifier: Apache-2.0
# What the broker tells a net process. Files: the tap, once for each pair of queues, then, if the kernel is to carry the
# packets, /dev/vhost-net as often; none where it has a packet link.
@0xc1c1e4b40d0b6a7e;

using Cxx = import "/capnp/c++.capnp";
using Control = import "/ipc/control.capnp";
$Cxx.namespace("bulkhead::net");

struct NetSettings {
  mac @0 :Data;                # 6 bytes: the interface's own
  mtu @1 :UInt16;              # of the tap, and so of the guest's interface
  anyMac @2 :Bool;             # the guest may send with other addresses than its own
  ipAddresses @3 :List(Data);  # 4 or 16 bytes each: all that the guest may send with; empty: any
  throttle @4 :Control.DiskThrottle;   # of each direction by itself
  linkDown @5 :Bool;           # until somebody turns it on
  vhost @6 :Bool;              # the kernel carries the packets; neither addresses nor limits are held against them
}
