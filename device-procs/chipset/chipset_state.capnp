# SPDX-License-Identifier: Apache-2.0
# What the chipset process saves. Fields are only ever added; a reader of an older state sees their defaults.
@0xcd9134c29478d1d5;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::chipset::state");

struct CmosState {
  index @0 :UInt8;
  registers @1 :Data;          # 128 bytes; the clock's are those of a stopped clock
  flags @2 :UInt8;             # register C without IRQF
  offsetSeconds @3 :Int64;     # guest's clock minus UTC
  offsetNanoseconds @4 :UInt32;
  checkedSeconds @5 :Int64;    # guest's clock up to which events are in the flags
  checkedNanoseconds @6 :UInt32;
}

struct AcpiPmState {
  status @0 :UInt16;
  enable @1 :UInt16;
  control @2 :UInt16;
  timerTicks @3 :UInt64;       # PM timer since power-on, not wrapped
  checkedHalfPeriod @4 :UInt64;
}

struct I8042State {
  commandByte @0 :UInt8;
  outputByte @1 :UInt8;
  outputFull @2 :Bool;
  pendingCommand @3 :UInt8;    # the command whose data byte comes next, 0 if none
  lastWasCommand @4 :Bool;
}

struct DebugConsoleState {
  unsent @0 :Data;
  written @1 :UInt64;         # bytes before these (ipc/counted_output.h)
}

struct HostBridgeState {
  command @0 :UInt16;
}

struct ChipsetState {
  version @0 :UInt32;
  cmos @1 :CmosState;
  acpiPm @2 :AcpiPmState;
  i8042 @3 :I8042State;
  debugConsole @4 :DebugConsoleState;
  hostBridge @5 :HostBridgeState;
  postCode @6 :UInt8;
  resetControl @7 :UInt8;
}
