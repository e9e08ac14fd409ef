# SPDX-License-Identifier: Apache-2.0
# What the broker tells a disk process. Files: those of `images`, in this order.
@0xd5dcaa87aabbc849;

using Cxx = import "/capnp/c++.capnp";
using Control = import "/ipc/control.capnp";
$Cxx.namespace("bulkhead::disk");

struct Image {
  format @0 :Format;
  readOnly @1 :Bool;
  directIo @2 :Bool;      # opened with O_DIRECT
  blockDevice @3 :Bool;
  name @4 :Text;          # for messages only

  enum Format {
    raw @0;
    qcow2 @1;
    qcow @2;              # version 1
  }
}

struct DiskSettings {
  images @0 :List(Image); # the disk's own, then the file below it, and so on
  discard @1 :Bool;       # offer discard and write-zeroes
  serial @2 :Text;        # VIRTIO_BLK_T_GET_ID, at most 20 bytes
  queueCount @3 :UInt16;
  throttle @4 :Control.DiskThrottle;
}
