# SPDX-License-Identifier: Apache-2.0
# What the broker tells the chipset process. Files: the debug console's output, if there is one.
@0xb34a7344e6cc9f6c;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::chipset");

struct ChipsetSettingsMessage {
  memoryBytes @0 :UInt64;   # guest RAM, for the size bytes in CMOS
}
