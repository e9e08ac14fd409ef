# SPDX-License-Identifier: Apache-2.0
# The control plane: what the broker and its children may ask of each other. Each connection is one socketpair, and
# each side holds only the capabilities it was handed; nothing is looked up by name. A File carries one file descriptor
# and no methods: descriptors flow from the broker to a child, never back.
@0xe4c4054d5c981f08;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::control");

interface File {}

struct MemoryRegion {
  base @0 :UInt64;         # guest physical address
  size @1 :UInt64;         # bytes
  fileOffset @2 :UInt64;   # bytes into the memory file
}

struct MemoryGrant {
  file @0 :File;           # null: this process gets no guest memory
  regions @1 :List(MemoryRegion);
  log @2 :File;            # ipc/dirty_log.h: for what this process writes; null: it need not say
}

struct ChannelGrant {
  memory @0 :File;         # two rings (ipc/ring.h)
  doorbell @1 :File;       # eventfd that wakes the device process
}

struct LineGrant {
  # A wired interrupt line.
  signal @0 :File;         # eventfd: an edge, or assertion of a level
  resample @1 :File;       # eventfd signalled when the guest has acknowledged a level; null for an edge
  gsi @2 :UInt32;
}

struct FunctionGrant {
  # One PCI function, bus 0, function 0.
  slot @0 :UInt8;
  bar0 @1 :UInt64;             # where firmware would have put BAR 0
  kicks @2 :List(File);        # eventfd of each queue
  interrupts @3 :List(File);   # eventfd of each MSI-X vector
}

struct RegionGrant {
  # A range of addresses that the guest reaches and the device process answers.
  size @0 :UInt64;             # bytes
  union {
    port @1 :UInt16;           # I/O ports from here on
    config @2 :UInt8;          # configuration space of the function with this index in `functions`
    bar0 @3 :UInt8;            # BAR 0 of the function with this index
  }
}

struct DeviceWiring {
  # What the guest can reach a device process by: known to that process and to the runner.
  name @0 :Text;               # "disk0"
  channel @1 :ChannelGrant;    # null: the guest does not reach it
  regions @2 :List(RegionGrant);
  functions @3 :List(FunctionGrant);
  lines @4 :List(LineGrant);
}

struct SandboxGrant {
  reportViolations @0 :Bool;   # else the kernel kills on a forbidden system call
}

struct SandboxReport {
  # What a child says of its walls when it is ready, before it has read anything hostile.
  violations @0 :Int32 = -1;   # the number, in the child, of its system call filter's listener; -1: none
  hasLandlock @1 :Bool;
}

struct PacketGrant {
  # One end of a packet link (ipc/packet_ring.h) between a net process and the one that is its outside.
  memory @0 :File;
  doorbell @1 :File;           # eventfd that wakes this process
  peer @2 :File;               # eventfd that wakes the other
}

struct EgressRule {
  # Which addresses of the host's side a guest may reach from user-mode networking.
  allow @0 :Bool;
  address @1 :Data;            # 4 or 16 bytes
  prefix @2 :UInt8;            # bits of it that count
  port @3 :UInt16;             # 0: any
}

struct HostForward {
  # A port of the host's that leads to the guest; its socket, bound already, is the process's file of the same index.
  udp @0 :Bool;
  guestAddress @1 :Data;       # 4 or 16 bytes, as the socket's family
  guestPort @2 :UInt16;
}

struct GuestForward {
  # A TCP port of the guest's network that leads to one of the host's side, whatever the rules say.
  guestAddress @0 :Data;       # 4 bytes
  guestPort @1 :UInt16;
  hostAddress @2 :Data;        # 4 bytes
  hostPort @3 :UInt16;
}

struct UserNet {
  # User-mode networking: what the launcher asks for, and, checked by the broker, what a usernet process is told.
  network4 @0 :Data;           # 4 bytes; empty: no IPv4
  prefix4 @1 :UInt8;
  network6 @2 :Data;           # 16 bytes, of which 64 bits count; empty: no IPv6
  hostname @3 :Text;           # that DHCP gives the guest; empty: none
  dns4 @4 :Data;               # the host's resolvers, to which what the guest asks the virtual one is passed on
  dns6 @5 :Data;               # empty: none
  servesDns @6 :Bool;
  mtu @7 :UInt16;
  restricted @8 :Bool;         # the guest reaches nothing but the targets of guestForwards
  rules @9 :List(EgressRule);  # of those that fit, and of what is denied anyway, the most specific counts
  hostForwards @10 :List(HostForward);
  guestForwards @11 :List(GuestForward);
}

struct DeviceGrants {
  wiring @0 :DeviceWiring;
  memory @1 :MemoryGrant;
  files @2 :List(File);        # its host resources, in the order its kind defines
  settings @3 :AnyPointer;     # its kind's own settings struct
  controlsMachine @4 :Bool;    # the chipset
  spinNs @5 :UInt32;           # how long its device thread may spin for the next exit
  sandbox @6 :SandboxGrant;
  packets @7 :PacketGrant;     # null but for the two sides of user-mode networking
  journal @8 :File;            # ipc/journal.h; null: nobody takes the place of this process when it dies
  successor @9 :Bool;          # the journal is that of a process which has died, and whose place this one takes
  stages @10 :List(File);      # ipc/counted_output.h: of each stream that the process writes, as its kind defines
  pulse @11 :File;             # its end of an ipc/pulse_line.h; null: nobody asks
}

struct DiskThrottle {
  # What a guest may ask of a disk, over all its queues, or of a network interface in each direction; a rate of 0: no limit.
  bytesPerSecond @0 :UInt64;       # read and written
  bytesBurst @1 :UInt64;           # what an idle device may do at once; 0: what the rate gives in a tenth of a second
  operationsPerSecond @2 :UInt64;
  operationsBurst @3 :UInt64;
}

enum LinkState {
  # Of a network interface.
  up @0;
  gone @1;                     # its outside has ended: it does not come up again
  down @2;                     # as its user wants it
}

struct NetTraffic {
  # What a network interface has carried in one direction.
  packets @0 :UInt64;
  bytes @1 :UInt64;            # of frames
  dropped @2 :UInt64;          # packets
  refused @3 :UInt64;          # of these, those that said to come from somebody else
}

struct NetReport {
  link @0 :LinkState;
  received @1 :NetTraffic;     # by the guest. Null, as the other: not counted, as the kernel carries the packets
  sent @2 :NetTraffic;
}

interface DeviceHost {
  # The broker, as one device process sees it.
  grants @0 () -> (grants :DeviceGrants);
  ready @1 (device :Device, sandbox :SandboxReport) -> ();   # locked down, waiting for start
  goOn @2 (device :Device) -> ();      # the same of a process that another broker started, and which has gone on since
  machine @3 () -> (machine :MachineControl);   # for the chipset
}

interface MachineControl {
  powerOff @0 () -> ();
  reset @1 () -> ();
}

interface Device {
  # A device process, as the broker sees it.
  resume @0 () -> ();                  # also the first start
  pause @1 () -> ();                   # returns with nothing in flight
  save @2 () -> (state :AnyPointer);   # while paused
  restore @3 (state :AnyPointer) -> ();
  pressPowerButton @4 () -> ();        # chipset
  attach @5 (port :UInt8, input :File, output :File) -> ();   # console: a new outside
  load @6 () -> ();                    # once, before the first resume: reads what it was given that may be hostile;
                                       # fails with one line if it cannot be used
  throttle @7 (limits :DiskThrottle) -> ();   # disk, net: instead of those it has, at once
  loseOutside @8 () -> ();             # net: the process that was its outside has ended
  reportNet @9 () -> (report :NetReport);     # net
  setLink @10 (up :Bool) -> (link :LinkState);   # net: what its user wants; how it is then
  takeOver @11 () -> ();               # of a successor, once, after load: takes over what its journal holds. Fails with
                                       # one line if that cannot be used
  followLog @12 () -> ();              # its dirty log was switched: has the kernel, where that writes in its place, do the same
}

struct RunnerGrants {
  vmName @0 :Text;
  kvm @1 :File;
  memory @2 :MemoryGrant;
  vcpuCount @3 :UInt32;
  kernel @4 :File;
  kernelName @5 :Text;
  initrd @6 :File;             # null: none
  initrdName @7 :Text;
  commandLine @8 :Text;
  deviceCount @9 :UInt32;
  exitDeadlineNs @10 :UInt64;  # how long a vCPU waits for a device
  spinNs @11 :UInt32;
  sandbox @12 :SandboxGrant;
  patienceNs @13 :UInt64;      # how much longer, as the device may be replaced
  dirtyLog @14 :File;          # ipc/dirty_log.h: for what the vCPUs write
}

interface RunnerHost {
  grants @0 () -> (grants :RunnerGrants);
  ready @1 (runner :Runner, sandbox :SandboxReport) -> ();
  stopped @2 (reason :StopReason) -> ();
  deviceFailed @3 (device :UInt32, reason :Text) -> ();   # by index: no longer spoken to
  device @4 (index :UInt32) -> (wiring :DeviceWiring);    # one at a time: a message carries few descriptors
  deviceLate @5 (device :UInt32) -> ();   # by index: a vCPU has waited for it until the deadline, and waits on
  goOn @6 (runner :Runner) -> ();         # as a device's
}

struct StopReason {
  union {
    reset @0 :Void;            # triple fault, or the guest asked the processor to shut down
    failure @1 :Text;          # one line: what the runner cannot do
  }
}

interface Runner {
  load @0 () -> ();            # once; fails with one line if the kernel cannot be loaded. The vCPUs are paused then
  pause @1 () -> ();
  resume @2 () -> ();          # also the first start
  markDeviceDead @3 (device :UInt32) -> ();   # by index: nobody need wait for it any more
  logWrites @4 (on :Bool) -> ();              # of the vCPUs, from now on
  collectWrites @5 () -> ();                  # since the last time, into the dirty log
}
