# SPDX-License-Identifier: Apache-2.0
# Saved state of a virtio device behind virtio-pci: the transport's registers and queues, and the device's own.
# Read back from files that anyone may have written. New fields are appended; a reader knows older versions.
@0xe7316eb010fe0f64;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::device::state");

struct QueueState {
  size @0 :UInt16;
  enabled @1 :Bool;
  vector @2 :UInt16;
  descriptors @3 :UInt64;     # guest physical addresses
  available @4 :UInt64;
  used @5 :UInt64;
  nextAvailable @6 :UInt16;
  nextUsed @7 :UInt16;
}

struct VectorState {
  address @0 :UInt64;
  data @1 :UInt32;
  masked @2 :Bool;
  pending @3 :Bool;
}

struct VirtioState {
  version @0 :UInt16;         # 1
  type @1 :UInt16;            # virtio device type: a state is never loaded into another
  status @2 :UInt8;
  needsReset @3 :Bool;
  isr @4 :UInt8;
  configGeneration @5 :UInt8;
  deviceFeatureSelect @6 :UInt32;
  driverFeatureSelect @7 :UInt32;
  driverFeatures @8 :UInt64;
  configVector @9 :UInt16;
  queueSelect @10 :UInt16;
  queues @11 :List(QueueState);
  pciConfig @12 :Data;        # the writable part of configuration space, 256 bytes
  msixEnabled @13 :Bool;
  msixFunctionMasked @14 :Bool;
  vectors @15 :List(VectorState);
  device @16 :AnyPointer;     # the device's own struct
}
