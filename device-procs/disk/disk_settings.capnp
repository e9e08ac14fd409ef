# SPDX-License-Identifier: Apache-2.0
# What the broker tells a disk process. Files: the image, opened and locked.
@0xd52f0c5d7a1be9c4;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::disk");

struct DiskSettings {
  readOnly @0 :Bool;
  directIo @1 :Bool;           # the image was opened with O_DIRECT
  serial @2 :Text;             # at most 20 bytes: VIRTIO_BLK_T_GET_ID
  queueCount @3 :UInt16;
  blockDevice @4 :Bool;        # the image is a block device
  discard @5 :Bool;            # the guest may give space back
}
