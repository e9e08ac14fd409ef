# SPDX-License-Identifier: Apache-2.0
# What a usernet process saves: no more than that it was there. Connections end with the host's sockets that they are made
# of, and a guest that asks for an address again gets the one that it had.
@0xe6d6f1a20c7b4d19;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::usernet::state");

struct UserNetState {
  version @0 :UInt16;          # 1
}
