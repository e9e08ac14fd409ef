// SPDX-License-Identifier: Apache-2.0
// The disk processes: one per disk, holding the descriptors of its image and of the files below that.
#include <algorithm>

#include "broker/device_plan.h"
#include "device-procs/disk/disk_settings.capnp.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

using Format = disk::Image::Format;

// A queue costs a thread and an io_uring, or a part of them; more than this many never paid.
constexpr uint16_t kMaxDiskQueues = 16;
// The kernel's workers for operations that block (io_uring): fewer than these cost throughput, none is an I/O error.
constexpr uint32_t kWorkersPerThread = 32;
constexpr size_t kSerialBytes = 20;  // virtio 1.2 §5.2.6: VIRTIO_BLK_T_GET_ID
// Each costs descriptors and buffers of its process, and each read of what no file above has a step.
constexpr unsigned kMaxFiles = 16;
// That unpack for an image with a format.
constexpr uint32_t kMostHelpers = 2;
// A format's tables that are kept in memory, and its buffers, beside what every disk needs.
constexpr uint64_t kFormatMemoryBytes = uint64_t{192} << 20;
// What of a name leaves room for the rest of a message's line.
constexpr size_t kMaxNameBytes = 160;

Format FormatOf(control::ImageFormat format) {
  switch (format) {
    case control::ImageFormat::RAW:
      return Format::RAW;
    case control::ImageFormat::QCOW2:
      return Format::QCOW2;
    case control::ImageFormat::QCOW:
      return Format::QCOW;
  }
  throw FatalError("a disk's format is not one that is known here");
}

std::string ShownName(capnp::Text::Reader name) {
  const std::string text = name.cStr();
  return text.size() <= kMaxNameBytes ? text : "..." + text.substr(text.size() - kMaxNameBytes);
}

// What the configuration says alike of a disk's own file and of those below it.
template <typename Config>
void FillImage(const Config& config, bool read_only, disk::Image::Builder out) {
  out.setFormat(FormatOf(config.getFormat()));
  out.setReadOnly(read_only);
  out.setDirectIo(config.getDirectIo());
  out.setBlockDevice(config.getBlockDevice());
  out.setName(ShownName(config.getName()));
}

// Settings and descriptors in the same order.
void PlanImages(Planner& planner, DevicePlan& plan, control::DiskConfig::Reader disk, disk::DiskSettings::Builder out) {
  const auto backing = disk.getBacking();
  if (backing.size() >= kMaxFiles) {
    throw FatalError("a disk of more than " + std::to_string(kMaxFiles) + " files, one below the other");
  }
  auto images = out.initImages(backing.size() + 1);
  FillImage(disk, disk.getReadOnly(), images[0]);
  plan.files.push_back(TakeFile(disk.getFile(), planner.wait()));
  for (unsigned i = 0; i < backing.size(); ++i) {
    FillImage(backing[i], true, images[i + 1]);
    plan.files.push_back(TakeFile(backing[i].getFile(), planner.wait()));
  }
}

void PlanDisk(Planner& planner, control::DiskConfig::Reader disk, unsigned index) {
  const std::string name = "disk" + std::to_string(index);
  DevicePlan& plan = planner.Add(name, "bulkhead-disk");
  const auto wanted = disk.getQueues() != 0 ? disk.getQueues() : planner.config().getVcpuCount();
  const auto queues = static_cast<uint16_t>(std::clamp<uint32_t>(wanted, 1, kMaxDiskQueues));
  planner.AddVirtioFunction(plan, queues);
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  auto settings = plan.settings->initRoot<disk::DiskSettings>();
  PlanImages(planner, plan, disk, settings);
  // One thread serves all queues of an image that has a format, and has helpers.
  const bool raw = plan.files.size() == 1 && disk.getFormat() == control::ImageFormat::RAW;
  const unsigned threads = raw ? queues : 1;
  plan.limits.threads += raw ? threads : threads + kMostHelpers;
  plan.limits.kernel_threads += threads * kWorkersPerThread;
  plan.limits.counts_io = true;
  plan.takes_throttle = true;
  plan.replacement = DevicePlan::Replacement::kAlways;
  // A format keeps where it is what a guest has written but not flushed in tables in memory.
  plan.journals_tables = !raw;
  if (!raw) plan.limits.memory_bytes = kFormatMemoryBytes;
  settings.setDiscard(true);
  settings.setQueueCount(queues);
  settings.setThrottle(disk.getThrottle());
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
