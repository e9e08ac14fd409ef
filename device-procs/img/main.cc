// SPDX-License-Identifier: Apache-2.0
// bulkhead-img: works on disk images for `bulkhead img`, behind the same walls as a VM's disk. Holds the images that it
// was given and nothing else.
#include <sys/stat.h>
#include <unistd.h>

#include "device-procs/img/image_server.h"
#include "device-procs/img/policy.h"
#include "ipc/child.h"
#include "ipc/rpc.h"

namespace bulkhead::img {
namespace {

using device::ImageFormat;

// Beside those of the images, and of the messages that brought them.
constexpr rlim_t kOtherDescriptors = 64;
// Tables, and the chunks of several requests.
constexpr size_t kImgHeapBytes = size_t{160} << 20;
// Tables of each image, of which there may be many where several become one.
constexpr size_t kHeapBytesPerImage = size_t{8} << 20;

ImageFormat FormatOf(control::ImageGrant::Format format) {
  switch (format) {
    case control::ImageGrant::Format::RAW:
      return ImageFormat::kRaw;
    case control::ImageGrant::Format::QCOW2:
      return ImageFormat::kQcow2;
    case control::ImageGrant::Format::QCOW:
      return ImageFormat::kQcow;
    case control::ImageGrant::Format::DETECT:
      return ImageFormat::kDetect;
  }
  throw FatalError("an image of a format that is not known here");
}

std::unique_ptr<device::ImageChain> TakeChain(control::ImageChain::Reader grant, kj::WaitScope& wait) {
  std::vector<device::ImageFile> files;
  for (auto file : grant.getFiles()) {
    files.push_back({.file = TakeFile(file.getFile(), wait),
                     .format = FormatOf(file.getFormat()),
                     .read_only = file.getReadOnly(),
                     .direct_io = file.getDirectIo(),
                     .block_device = file.getBlockDevice(),
                     .name = file.getName().cStr()});
  }
  device::ImageChainOptions options;
  options.ignore_backing = grant.getIgnoreBacking();
  options.snapshot = grant.getSnapshot().cStr();
  options.backing_hint = "give it with --backing FILE, or add --backing-from-header";
  options.past_end = device::PastEnd::kZeroes;
  if (grant.getForCheck()) options.purpose = qcow2::Purpose::kCheck;
  options.log = LogLine;
  return std::make_unique<device::ImageChain>(std::move(files), std::move(options));
}

void Serve(kj::AsyncIoContext& io, ChildSandbox& sandbox) {
  RpcConnection broker(*io.lowLevelProvider, OwnFd(kControlFd));
  auto host = broker.Bootstrap<control::ImageHost>();
  auto response = host.grantsRequest().send().wait(io.waitScope);
  Mailbox mailbox(io.unixEventPort);
  std::vector<std::unique_ptr<device::ImageChain>> images;
  rlim_t files = 0;
  for (auto chain : response.getImages()) {
    files += chain.getFiles().size();
    images.push_back(TakeChain(chain, io.waitScope));
  }
  // It ends with the process.
  auto* worker = new WorkerThread(images, mailbox);
  const size_t heap_bytes = kImgHeapBytes + images.size() * kHeapBytesPerImage;
  sandbox.Close(response.getSandbox(), {{RLIMIT_NOFILE, kOtherDescriptors + 2 * files}, {RLIMIT_MEMLOCK, 0}},
                ImgPolicy(), heap_bytes);
  auto ready = host.readyRequest();
  ready.setWorker(kj::heap<ImageServer>(*worker));
  sandbox.Report(ready.initSandbox());
  ready.send().wait(io.waitScope);
  sandbox.Reported();
  broker.OnDisconnect().exclusiveJoin(mailbox.Serve()).wait(io.waitScope);
  ::_exit(0);
}

}  // namespace
}  // namespace bulkhead::img

int main(int argc, char** argv) {
  return bulkhead::RunChild(argc, argv, bulkhead::img::ImgPolicy(), bulkhead::img::Serve);
}
