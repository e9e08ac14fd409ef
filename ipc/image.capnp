# SPDX-License-Identifier: Apache-2.0
# Work on disk images, for `bulkhead img`: the launcher opens files, the broker starts a bulkhead-img process that holds
# them behind its walls, and hands the launcher a capability to it. That process reads what tenants wrote: the launcher
# believes nothing of what it says, and the broker only passes it on.
@0x9ad1d0f2c6f9b1e3;

using Cxx = import "/capnp/c++.capnp";
using Control = import "control.capnp";
$Cxx.namespace("bulkhead::control");

struct ImageGrant {
  enum Format {
    raw @0;
    qcow2 @1;
    qcow @2;
    detect @3;                   # what the first bytes say
  }
  file @0 :Control.File;         # opened and locked by the launcher
  name @1 :Text;                 # the user's path, for messages
  format @2 :Format;
  readOnly @3 :Bool;
  directIo @4 :Bool;
  blockDevice @5 :Bool;
}

struct ImageChain {
  files @0 :List(ImageGrant);    # topmost first
  ignoreBacking @1 :Bool;        # the topmost is looked at alone, whatever its header names
  forCheck @2 :Bool;             # it may be marked dirty or corrupt
  snapshot @3 :Text;             # the topmost is shown as it was in this one, by id or name; empty: as it is
}

struct ImageSnapshot {
  id @0 :Text;
  name @1 :Text;
  vmStateBytes @2 :UInt64;
  dateSec @3 :UInt32;
  dateNsec @4 :UInt32;
  vmClockNs @5 :UInt64;
  diskBytes @6 :UInt64;
}

struct ImageInfo {
  format @0 :ImageGrant.Format;
  virtualBytes @1 :UInt64;
  # Of qcow and qcow2 only:
  clusterBytes @2 :UInt64;
  backingFile @3 :Text;
  backingFormat @4 :Text;
  # Of qcow2 only:
  version @5 :UInt32;
  refcountBits @6 :UInt32;
  lazyRefcounts @7 :Bool;
  dirty @8 :Bool;
  corrupt @9 :Bool;
  zstd @10 :Bool;
  snapshots @11 :List(ImageSnapshot);
}

struct ImageExtent {
  start @0 :UInt64;
  bytes @1 :UInt64;
  zero @2 :Bool;
  data @3 :Bool;
  compressed @4 :Bool;
  present @5 :Bool;              # this file says what it is; else the one below would
  hasOffset @6 :Bool;
  offset @7 :UInt64;             # in the file
}

struct ImageCheck {
  enum Repair {
    none @0;
    leaks @1;
    all @2;
  }
  leaks @0 :UInt64;
  corruptions @1 :UInt64;
  leaksFixed @2 :UInt64;
  corruptionsFixed @3 :UInt64;
  imageEnd @4 :UInt64;
  totalClusters @5 :UInt64;
  allocatedClusters @6 :UInt64;
  fragmentedClusters @7 :UInt64;
  compressedClusters @8 :UInt64;
  messages @9 :List(Text);
}

struct ImageCreate {
  enum Preallocation {
    off @0;
    metadata @1;
    falloc @2;
    full @3;
  }
  virtualBytes @0 :UInt64;
  clusterBits @1 :UInt8;
  refcountOrder @2 :UInt8;
  version @3 :UInt8;
  lazyRefcounts @4 :Bool;
  zstd @5 :Bool;
  backingFile @6 :Text;
  backingFormat @7 :Text;
  preallocation @8 :Preallocation;
}

struct ImageConvert {
  create @0 :ImageCreate;        # of the target, unless that is raw
  compress @1 :Bool;
  requests @2 :UInt16;           # at one time
  zeroRunBytes @3 :UInt32;       # a run of so many zeroes becomes a hole; 0: none does
  targetReadsZero @4 :Bool;      # nothing was ever written to it
}

enum SnapshotWork {
  create @0;
  apply @1;
  delete @2;
}

interface ImageWorker {
  # One call of a job at a time; progress at any time. Image 0 is the one that is looked at, read or changed; image 1 is
  # the other one of those that take two. convert takes two or more.
  info @0 () -> (info :ImageInfo);
  map @1 (offset :UInt64) -> (extents :List(ImageExtent));   # a part of the map; empty at the end of the disk
  check @2 (repair :ImageCheck.Repair) -> (report :ImageCheck);
  create @3 (options :ImageCreate) -> ();                    # image 0 becomes one
  resize @4 (virtualBytes :UInt64, shrink :Bool) -> ();
  snapshot @5 (work :SnapshotWork, name :Text, nowNs :Int64) -> ();
  convert @6 (options :ImageConvert) -> ();                  # all but the last, one behind the other, into the last
  compare @7 (strict :Bool) -> (same :Bool, offset :UInt64, sizesDiffer :Bool);
  commit @8 () -> ();                                        # what image 0 has itself into image 1, the file below it
  setBacking @9 (name :Text, format :Text) -> ();            # in the header alone
  rebase @10 () -> ();                                       # image 0 gets what it would miss over image 1
  progress @11 () -> (done :UInt64, total :UInt64);          # bytes of the job that is running
}

interface ImageHost {
  # The broker, as the bulkhead-img process sees it.
  grants @0 () -> (images :List(ImageChain), sandbox :Control.SandboxGrant);
  ready @1 (worker :ImageWorker, sandbox :Control.SandboxReport) -> ();   # locked down
}
