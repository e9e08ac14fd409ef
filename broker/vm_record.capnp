# SPDX-License-Identifier: Apache-2.0
# What a broker writes down of its VM for the one that takes over when it crashes or is upgraded: all that neither the
# launcher's configuration tells nor the VM's processes know themselves. It lies in a journal (ipc/journal.h), which the
# spawner keeps.
@0xc1c64ddc2a0f7e19;

using Cxx = import "/capnp/c++.capnp";
using Control = import "/ipc/control.capnp";
using Broker = import "/ipc/broker.capnp";
$Cxx.namespace("bulkhead::broker::record");

struct VmRecord {
  startedAtUnix @0 :Int64;     # seconds
  state @1 :Text;              # as in VmReport
  spawnerPid @2 :Int32;
  runnerPid @3 :Int32;
  running @4 :Bool;            # the guest has been started
  settled @5 :Bool;            # no pause, resume or upgrade was under way
  serving @6 :Bool;            # the devices have been resumed, and not been paused
  devices @7 :List(Device);    # in the order of the plans
  cgroup @8 :Text;             # its directory's name; empty: none
  end @9 :Broker.ExitReport;   # null: the VM has not been told to end
  writeLog @10 :WriteLog;      # null: what is written to guest memory is not logged
}

struct WriteLog {
  # VmControl.logWrites.
  id @0 :UInt64;
  sinceNs @1 :Int64;           # of CLOCK_MONOTONIC
}

struct Device {
  name @0 :Text;
  pid @1 :Int32;               # of the process that serves; 0: none does
  generation @2 :UInt32;
  dead @3 :Bool;               # given up
  throttle @4 :Control.DiskThrottle;   # as the user set it; null: never
  link @5 :Link;
  attached @6 :List(UInt8);    # ports whose connection is kept
  enum Link {
    asPlanned @0;
    up @1;
    down @2;
  }
}
