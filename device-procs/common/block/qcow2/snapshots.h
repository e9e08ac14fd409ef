// SPDX-License-Identifier: Apache-2.0
// The internal snapshots of a qcow2 image (QEMU, docs/interop/qcow2.txt, "Snapshots"): the table of them, and what
// makes and takes them. The image's thread, while nothing else uses the image. The table is the file's: hostile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device-procs/common/block/qcow2/qcow2_channel.h"

namespace bulkhead::qcow2 {

struct Snapshot {
  std::string id;
  std::string name;
  uint64_t l1_offset = 0;
  uint32_t l1_entries = 0;
  uint32_t date_sec = 0;
  uint32_t date_nsec = 0;
  uint64_t vm_clock_ns = 0;
  uint64_t vm_state_bytes = 0;
  uint64_t disk_bytes = 0;
  std::vector<std::byte> more;  // extra data that is not known here
};

struct SnapshotTable {
  std::vector<Snapshot> snapshots;
  uint64_t size_bytes = 0;  // in the file
};

device::Task<Result<SnapshotTable>> ReadSnapshots(ImageState& state);

// The disk of an image that is read only shows what it was, as long as it is open.
device::Task<Result<void>> ShowSnapshot(Qcow2Channel& image, std::string which);

// `now_ns`: since 1970. Each is durable at its end; cut off, it leaves the image with clusters that are not used.
device::Task<Result<void>> CreateSnapshot(Qcow2Channel& image, std::string name, int64_t now_ns);
// The disk becomes what it was. `which` is an id or a name.
device::Task<Result<void>> ApplySnapshot(Qcow2Channel& image, std::string which);
device::Task<Result<void>> DeleteSnapshot(Qcow2Channel& image, std::string which);

}  // namespace bulkhead::qcow2
