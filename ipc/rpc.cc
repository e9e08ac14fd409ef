// SPDX-License-Identifier: Apache-2.0
#include "ipc/rpc.h"

#include <sys/socket.h>

namespace bulkhead {
namespace {

capnp::ReaderOptions MessageLimits() {
  capnp::ReaderOptions limits;
  limits.traversalLimitInWords = 1 << 20;  // 8 MiB: the largest message is one VM's configuration or device state
  limits.nestingLimit = 16;
  return limits;
}

class FileServer final : public control::File::Server {
 public:
  explicit FileServer(OwnFd fd) : fd_(std::move(fd)) {}
  kj::Maybe<int> getFd() override { return fd_.get(); }

 private:
  OwnFd fd_;
};

kj::Own<kj::AsyncCapabilityStream> WrapSocket(kj::LowLevelAsyncIoProvider& io, OwnFd socket) {
  return io.wrapUnixSocketFd(socket.Release(), kj::LowLevelAsyncIoProvider::TAKE_OWNERSHIP);
}

}  // namespace

RpcConnection::RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, capnp::Capability::Client bootstrap,
                             capnp::rpc::twoparty::Side side)
    : side_(side),
      stream_(WrapSocket(io, std::move(socket))),
      network_(*stream_, kMaxFdsPerMessage, side, MessageLimits()),
      system_(capnp::makeRpcServer(network_, kj::mv(bootstrap))) {}

RpcConnection::RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, capnp::rpc::twoparty::Side side)
    : side_(side),
      stream_(WrapSocket(io, std::move(socket))),
      network_(*stream_, kMaxFdsPerMessage, side, MessageLimits()),
      system_(capnp::makeRpcClient(network_)) {}

control::File::Client MakeFile(OwnFd fd) { return kj::heap<FileServer>(std::move(fd)); }

control::File::Client ShareFile(int fd) { return MakeFile(OrThrow(DuplicateFd(fd))); }

OwnFd TakeFile(control::File::Client file, kj::WaitScope& wait) {
  KJ_IF_MAYBE (fd, file.getFd().wait(wait)) {
    return OrThrow(DuplicateFd(*fd));
  }
  throw FatalError("a granted file carries no descriptor", EBADF);
}

std::vector<OwnFd> TakeFiles(capnp::List<control::File>::Reader files, kj::WaitScope& wait) {
  std::vector<OwnFd> taken;
  for (auto file : files) taken.push_back(TakeFile(file, wait));
  return taken;
}

kj::Exception Failure(const std::string& line) {
  return kj::Exception(kj::Exception::Type::FAILED, __FILE__, __LINE__, kj::str(line.c_str()));
}

std::string ReasonOf(const kj::Exception& exception) {
  constexpr std::string_view kPrefix = "remote exception: ";
  std::string reason = exception.getDescription().cStr();
  while (reason.starts_with(kPrefix)) reason.erase(0, kPrefix.size());
  return reason;
}

std::pair<OwnFd, OwnFd> MakeSocketPair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) ThrowErrno("create a socket pair");
  return {OwnFd(ends[0]), OwnFd(ends[1])};
}

}  // namespace bulkhead
