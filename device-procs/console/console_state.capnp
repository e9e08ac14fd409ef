# SPDX-License-Identifier: Apache-2.0
# What the console process saves. Fields are only ever added; a reader of an older state sees their defaults.
@0xb628ac5667a823dc;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::device::state");

struct UartState {
  version @0 :UInt32;
  ier @1 :UInt8;
  fcr @2 :UInt8;              # bit 0 and bits 7:6, as last written
  lcr @3 :UInt8;
  mcr @4 :UInt8;
  scr @5 :UInt8;
  divisor @6 :UInt16;
  modemDeltas @7 :UInt8;      # MSR bits 3:0
  overrun @8 :Bool;           # LSR bit 1
  threPending @9 :Bool;       # the THRE interrupt is latched
  threOwed @10 :Bool;         # it is to be latched as soon as there is room
  received @11 :Data;         # receiver FIFO, oldest byte first
  unread @12 :Data;           # taken from the outside, to arrive again after a FIFO reset
  unsent @13 :Data;           # written by the guest, not yet taken by the outside
  linePolls @14 :UInt32;      # LSR reads since the last configuration write
}

struct ConsoleState {
  version @0 :UInt32;
  uart @1 :UartState;
  virtio @2 :AnyPointer;      # state of the virtio function, null where the VM has none
  serialWritten @3 :UInt64;   # bytes of the serial port's output (ipc/counted_output.h)
  virtioWritten @4 :UInt64;   # and of the virtio console's
}
