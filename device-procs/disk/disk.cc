// SPDX-License-Identifier: Apache-2.0
#include "device-procs/disk/disk.h"

#include <sys/stat.h>

#include "device-procs/common/block/image_chain.h"
#include "device-procs/common/virtio_pci.h"
#include "device-procs/disk/disk_settings.capnp.h"
#include "device-procs/disk/virtio_blk.h"

namespace bulkhead::device {
namespace {

ImageFormat FormatOf(disk::Image::Format format) {
  switch (format) {
    case disk::Image::Format::RAW:
      return ImageFormat::kRaw;
    case disk::Image::Format::QCOW2:
      return ImageFormat::kQcow2;
    case disk::Image::Format::QCOW:
      return ImageFormat::kQcow;
  }
  throw FatalError("the disk image is of a format that is not known here");
}

std::vector<ImageFile> TakeImages(disk::DiskSettings::Reader settings, std::vector<OwnFd> files) {
  std::vector<ImageFile> images;
  for (auto image : settings.getImages()) {
    OwnFd& file = files.at(images.size());
    struct stat status;
    if (::fstat(file.get(), &status) != 0) ThrowErrno("look at the disk image");
    if (S_ISBLK(status.st_mode) != image.getBlockDevice()) {
      throw FatalError("the disk image is not of the kind it was opened as");
    }
    images.push_back({.file = std::move(file),
                      .format = FormatOf(image.getFormat()),
                      .read_only = image.getReadOnly(),
                      .direct_io = image.getDirectIo(),
                      .block_device = image.getBlockDevice(),
                      .name = image.getName().cStr()});
  }
  return images;
}

std::unique_ptr<DeviceModel> Build(DeviceContext& context, QueueServer::Log log) {
  const auto settings = context.settings.getAs<disk::DiskSettings>();
  if (context.files.empty() || context.files.size() != settings.getImages().size() || context.functions.size() != 1 ||
      context.memory == nullptr) {
    throw FatalError("the grants are not those of a disk");
  }
  FunctionResources& function = context.functions[0];
  if (settings.getQueueCount() == 0 || settings.getQueueCount() != function.kicks.size()) {
    throw FatalError("the grants do not fit the number of queues");
  }
  VirtioBlkOptions options{.disk_id = settings.getSerial().cStr(),
                           .discard = settings.getDiscard(),
                           .log = log,
                           .kick_fds = {},
                           .throttle = ThrottleLimitsOf(settings.getThrottle())};
  for (const OwnFd& kick : function.kicks) options.kick_fds.push_back(kick.get());
  auto image = std::make_unique<ImageChain>(
      TakeImages(settings, std::move(context.files)),
      ImageChainOptions{
          .tables = context.recorder->Tables(), .successor = context.recorder->taking_over(), .log = std::move(log)});
  return std::make_unique<VirtioPci>(std::make_unique<VirtioBlk>(*context.memory, std::move(image), std::move(options)),
                                     *context.loop, *context.memory, std::move(function), *context.recorder);
}

}  // namespace

std::unique_ptr<DeviceModel> MakeDisk(DeviceContext context, QueueServer::Log log) {
  try {
    return Build(context, std::move(log));
  } catch (const FatalError& error) {
    const auto images = context.settings.getAs<disk::DiskSettings>().getImages();
    const std::string name = images.size() != 0 ? images[0].getName().cStr() : "";
    throw FatalError("disk '" + name + "': " + error.what(), error.code());
  }
}

}  // namespace bulkhead::device
