// SPDX-License-Identifier: Apache-2.0
// The disk processes: one per image, holding that image's descriptor.
#include <algorithm>

#include "broker/device_plan.h"
#include "device-procs/disk/disk_settings.capnp.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

// A queue costs a thread and an io_uring; more than this many never paid.
constexpr uint16_t kMaxDiskQueues = 16;
// The kernel's workers for operations that block (io_uring): fewer than these cost throughput, none is an I/O error.
constexpr uint32_t kWorkersPerQueue = 32;
constexpr size_t kSerialBytes = 20;  // virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID

void PlanDisk(Planner& planner, control::DiskConfig::Reader disk, unsigned index) {
  const std::string name = "disk" + std::to_string(index);
  DevicePlan& plan = planner.Add(name, "bulkhead-disk");
  const auto wanted = disk.getQueues() != 0 ? disk.getQueues() : planner.config().getVcpuCount();
  const auto queues = static_cast<uint16_t>(std::clamp<uint32_t>(wanted, 1, kMaxDiskQueues));
  planner.AddVirtioFunction(plan, queues);
  plan.files.push_back(TakeFile(disk.getFile(), planner.wait()));
  plan.limits.threads += queues;
  plan.limits.kernel_threads += queues * kWorkersPerQueue;
  plan.limits.counts_io = true;
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  auto settings = plan.settings->initRoot<disk::DiskSettings>();
  settings.setReadOnly(disk.getReadOnly());
  settings.setDirectIo(disk.getDirectIo());
  settings.setBlockDevice(disk.getBlockDevice());
  settings.setDiscard(true);
  settings.setQueueCount(queues);
  const std::string serial = disk.getSerial().size() != 0 ? disk.getSerial().cStr() : name;
  if (serial.size() > kSerialBytes) {
    throw FatalError("disk id '" + serial + "' is longer than " + std::to_string(kSerialBytes) + " bytes");
  }
  settings.setSerial(serial);
}

}  // namespace

void PlanDisks(Planner& planner) {
  unsigned index = 0;
  for (auto disk : planner.config().getDisks()) PlanDisk(planner, disk, index++);
}

}  // namespace bulkhead::broker
