# SPDX-License-Identifier: Apache-2.0
# What the launcher asks of the broker. The launcher opens the user's paths with the user's rights and hands over
# descriptors; names beside them serve messages only. The broker checks every value: the launcher may be anyone.
@0x87681b1fdf683eb6;

using Cxx = import "/capnp/c++.capnp";
using Control = import "control.capnp";
using Image = import "image.capnp";
$Cxx.namespace("bulkhead::control");

enum ImageFormat {
  raw @0;
  qcow2 @1;
  qcow @2;                     # version 1
}

struct BackingConfig {
  # A file below a disk's own; it is never written.
  file @0 :Control.File;       # opened and locked by the launcher, for reading
  name @1 :Text;
  format @2 :ImageFormat;
  directIo @3 :Bool;
  blockDevice @4 :Bool;
}

struct DiskConfig {
  # The fields of a file are those of the topmost one.
  file @0 :Control.File;       # opened and locked by the launcher; O_DIRECT where the file allows it
  name @1 :Text;               # the user's path, for messages
  readOnly @2 :Bool;
  serial @3 :Text;             # id= or empty: VIRTIO_BLK_T_GET_ID
  directIo @4 :Bool;           # the file was opened with O_DIRECT
  blockDevice @5 :Bool;
  queues @6 :UInt16;           # 0: one per vCPU, up to the broker's limit
  format @7 :ImageFormat;      # never found out by the contents, which a guest may have written
  backing @8 :List(BackingConfig);     # the file below this one, then the one below that
  throttle @9 :Control.DiskThrottle;
}

struct NetConfig {
  taps @0 :List(Control.File); # one tap, opened once for each pair of queues
  name @1 :Text;               # the tap's, for messages
  mac @2 :Data;                # 6 bytes
  mtu @3 :UInt16;              # the tap's
  anyMac @4 :Bool;             # the guest may send from other MAC addresses
  ipAddresses @5 :List(Data);  # 4 or 16 bytes: all that it may send from; empty: any
  throttle @6 :Control.DiskThrottle;   # of each direction; an operation is a packet
  user @7 :Control.UserNet;    # null: it is at the taps. Else there are none, and its outside is a process of its own
  listeners @8 :List(Control.File);    # for user.hostForwards, in their order
  linkDown @9 :Bool;           # at the start
  vhost @10 :FileSource;       # /dev/vhost-net: the kernel carries the packets. Null: the net process does
}

interface FileSource {
  # The launcher, for what nobody keeps and each process needs one of its own of, also who takes another's place.
  open @0 () -> (file :Control.File);  # anew; fails with one line for the user
}

struct StreamConfig {
  # The outside of a console: where the guest's bytes go to and come from.
  input @0 :Control.File;      # null: nothing ever arrives
  output @1 :Control.File;     # null: output is discarded
  listener @2 :Control.File;   # listening UNIX socket; the broker accepts, one connection at a time
}

struct VmLimits {
  # Of all processes of a VM together; 0: the default.
  memoryBytes @0 :UInt64;      # guest memory and what the processes need themselves
  cpuThousandths @1 :UInt32;   # of one processor; default: no limit
  tasks @2 :UInt32;            # threads
  ioBytesPerSecond @3 :UInt64; # of images, each way and for each of their block devices; default: no limit
}

struct VmConfig {
  name @0 :Text;
  memoryBytes @1 :UInt64;
  vcpuCount @2 :UInt32;
  kernel @3 :Control.File;
  kernelName @4 :Text;
  initrd @5 :Control.File;     # null: none
  initrdName @6 :Text;
  commandLine @7 :Text;
  disks @8 :List(DiskConfig);
  serial @9 :StreamConfig;             # ttyS0
  virtioConsole @10 :StreamConfig;     # hvc0; absent (null pointer): no such device
  debugConsole @11 :Control.File;      # null: output of port 0x402 is discarded
  keepOnDeviceFailure @12 :Bool;       # a dead device reads all ones and the VM goes on; else it ends
  exitDeadlineMs @13 :UInt32;          # 0: default
  runtimeDir @14 :Text;                # where the control socket NAME.sock goes
  limits @15 :VmLimits;
  firstUid @16 :UInt32;                # started by root: the ids that its processes get
  uidCount @17 :UInt32;                # 0: the default range
  requireFullSandbox @18 :Bool;        # else a host without all walls is only told of
  nets @19 :List(NetConfig);
  deviceRestarts @20 :UInt32;          # how often in a minute another process may take the place of a device's that died
}

struct ExitReport {
  # How a VM ended.
  kind @0 :Kind;
  detail @1 :Text;             # one line for failure and deviceFailure
  enum Kind {
    powerOff @0;
    reset @1;
    killed @2;                 # by kill, or the second signal
    failure @3;                # the VMM's: runner or broker
    deviceFailure @4;          # a device process died or hung
  }
}

struct ProcessReport {
  name @0 :Text;               # "vcpu-runner", "disk0"
  pid @1 :Int32;
  files @2 :UInt16;            # host files that it was given
  queues @3 :UInt16;           # virtqueues of its functions
}

struct VmReport {
  name @0 :Text;
  state @1 :Text;              # "starting", "running", "paused", "stopping"
  brokerPid @2 :Int32;
  processes @3 :List(ProcessReport);
  memoryBytes @4 :UInt64;
  vcpuCount @5 :UInt32;
  startedAtUnix @6 :Int64;     # seconds
}

struct InterfaceReport {
  # A network interface, as its own process sees it.
  name @0 :Text;               # "net0"
  answered @1 :Bool;           # else the process has ended, or did not answer in time
  report @2 :Control.NetReport;
}

struct UpgradeReport {
  # A device whose process was replaced.
  name @0 :Text;
  pauseNs @1 :UInt64;          # how long it served nothing
}

struct DirtyReport {
  # Pages of guest memory, of 4 KiB, that were written within a time.
  struct Writer {
    name @0 :Text;             # the process: "vcpu-runner" for what the vCPUs wrote, "disk0"
    pages @1 :UInt64;
  }
  writers @0 :List(Writer);
  pages @1 :UInt64;            # written by any of them
  durationNs @2 :UInt64;
}

interface WriteLog {
  # What is written to guest memory is logged for as long as somebody has this.
  take @0 () -> (report :DirtyReport);   # since the last time, at first since the log began
}

interface VmControl {
  # A VM, as whoever may connect to its control socket sees it: the user who started it, and root.
  report @0 () -> (report :VmReport);
  pressPowerButton @1 () -> ();
  kill @2 () -> ();
  waitForEnd @3 () -> (report :ExitReport);
  pause @4 () -> ();
  resume @5 () -> ();                  # also the first start
  throttle @6 (device :Text, limits :Control.DiskThrottle) -> ();   # "disk0", "net0": new limits instead of those it has
  reportNets @7 () -> (interfaces :List(InterfaceReport));
  setLink @8 (interface :Text, up :Bool) -> ();   # "net0"; fails where it cannot come up
  upgrade @9 (device :Text) -> (devices :List(UpgradeReport));   # "disk0", or all where it is empty: another process, of
                               # the program that is installed now, takes the place of the device's. Returns when the
                               # guest is served by it; fails with one line if one could not be replaced.
                               # "broker": this broker ends, and another is to take over
  logWrites @10 (id :UInt64) -> (log :WriteLog);   # one at a time; `id` is the caller's choice, by which a broker that takes
                               # over knows whose log it is. It keeps that for a while
}

const handOverStatus :Int32 = 75;
# The exit status of a broker that ends so that another takes over.

interface Broker {
  # The bootstrap of the launcher's own connection. The VM lives no longer than this connection.
  createVm @0 (config :VmConfig) -> (vm :VmControl, missingWalls :List(Text), spawner :Control.File);
                                                       # returns when every process is locked down and the
                                                       # kernel is loaded; the VM is paused then. `spawner` is for
                                                       # takeOverVm, and the processes live as long as it is open
  probe @1 () -> (report :ProbeReport);                # what this host's KVM can do, by trying
  openImages @2 (images :List(Image.ImageChain)) -> (worker :Image.ImageWorker);
                                                       # returns when the process that holds them is locked down
  takeOverVm @3 (config :VmConfig, spawner :Control.File) -> (vm :VmControl);
                                                       # of a broker that ended before the VM did, which has gone on
                                                       # and goes on. Fails where it cannot; then it is to be ended
}

struct ProbeReport {
  struct Check {
    name @0 :Text;             # "guest code at CPL 0"
    status @1 :Status;
    detail @2 :Text;           # what was seen; for a failure what it means and what to do
  }
  enum Status {
    ok @0;
    failed @1;                 # VMs do not run
    limited @2;                # VMs run, but not all guests do
  }
  checks @0 :List(Check);
  stockKernels @1 :Bool;       # unmodified kernels can run here
}

interface ProbeHost {
  # The broker, as the probe process sees it.
  kvm @0 () -> (kvm :Control.File);
  report @1 (report :ProbeReport) -> ();
}
