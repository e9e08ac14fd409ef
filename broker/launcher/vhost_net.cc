// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/vhost_net.h"

#include <fcntl.h>

#include <cerrno>

#include "ipc/rpc.h"

namespace bulkhead::launcher {
namespace {

class VhostNetSource final : public control::FileSource::Server {
 public:
  kj::Promise<void> open(OpenContext context) override {
    try {
      context.getResults().setFile(MakeFile(OpenVhostNet("--net")));
    } catch (const FatalError& error) {
      return Failure(error.what());
    }
    return kj::READY_NOW;
  }
};

}  // namespace

OwnFd OpenVhostNet(const std::string& subject) {
  OwnFd file(::open("/dev/vhost-net", O_RDWR | O_CLOEXEC));
  if (file.valid()) return file;
  const int error = errno;
  if (error == ENOENT || error == ENODEV || error == ENXIO) {
    throw FatalError(subject + ": this host has no /dev/vhost-net; load its driver with `modprobe vhost_net`", error);
  }
  if (error == EACCES || error == EPERM) {
    throw FatalError(subject +
                         ": no permission to open /dev/vhost-net; as a rule it is the group kvm's "
                         "(`chgrp kvm /dev/vhost-net && chmod 660 /dev/vhost-net`)",
                     error);
  }
  throw FatalError(ErrnoError(error, subject + ": open /dev/vhost-net"));
}

control::FileSource::Client MakeVhostNetSource() { return kj::heap<VhostNetSource>(); }

}  // namespace bulkhead::launcher
