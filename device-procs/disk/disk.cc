// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/disk.h"

#include <sys/stat.h>

#include "device-procs/common/virtio_pci.h"
#include "device-procs/disk/disk_settings.capnp.h"
#include "device-procs/disk/raw_image.h"
#include "device-procs/disk/virtio_blk.h"

namespace bulkhead::device {
namespace {

std::unique_ptr<DeviceModel> Build(DeviceContext& context, QueueServer::Log log) {
  const auto settings = context.settings.getAs<disk::DiskSettings>();
  if (context.files.size() != 1 || context.functions.size() != 1 || context.memory == nullptr) {
    throw FatalError("the grants are not those of a disk");
  }
  FunctionResources& function = context.functions[0];
  if (settings.getQueueCount() == 0 || settings.getQueueCount() != function.kicks.size()) {
    throw FatalError("the grants do not fit the number of queues");
  }
  OwnFd& file = context.files[0];
  struct stat status;
  if (::fstat(file.get(), &status) != 0) ThrowErrno("look at the disk image");
  if (S_ISBLK(status.st_mode) != settings.getBlockDevice()) {
    throw FatalError("the disk image is not of the kind it was opened as");
  }
  VirtioBlkOptions options{
      .disk_id = settings.getSerial().cStr(), .discard = settings.getDiscard(), .log = std::move(log), .kick_fds = {}};
  for (const OwnFd& kick : function.kicks) options.kick_fds.push_back(kick.get());
  auto image = OpenRawImage(std::move(file), settings.getReadOnly(), settings.getDirectIo());
  return std::make_unique<VirtioPci>(std::make_unique<VirtioBlk>(*context.memory, std::move(image), std::move(options)),
                                     *context.loop, *context.memory, std::move(function));
}

}  // namespace

std::unique_ptr<DeviceModel> MakeDisk(DeviceContext context, QueueServer::Log log) {
  try {
    return Build(context, std::move(log));
  } catch (const FatalError& error) {
    throw FatalError(context.name + ": " + error.what(), error.code());
  }
}

}  // namespace bulkhead::device
