# SPDX-License-Identifier: Apache-2.0
# What the broker tells the console process. Files: the serial port's input and output, then the virtio console's, each
# only where its flag is set.
@0x8e160150a07f2963;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::console");

struct ConsoleSettings {
  serial @0 :Stream;
  virtioConsole @1 :Stream;
  hasVirtioConsole @2 :Bool;   # the second region pair and function exist

  struct Stream {
    hasInput @0 :Bool;
    hasOutput @1 :Bool;
  }
}
