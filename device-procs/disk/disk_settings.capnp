# SPDX-License-Identifier: Apache-2.0
# What the broker tells a disk process. Files: the image.
@0xd5dcaa87aabbc849;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("bulkhead::disk");

struct DiskSettings {
  readOnly @0 :Bool;
  directIo @1 :Bool;      # the image was opened with O_DIRECT
  blockDevice @2 :Bool;
  discard @3 :Bool;       # offer discard and write-zeroes
  serial @4 :Text;        # VIRTIO_BLK_T_GET_ID, at most 20 bytes
  queueCount @5 :UInt16;
}
