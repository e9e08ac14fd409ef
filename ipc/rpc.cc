// SPDX-License-Identifier: Apache-2.0
#include "ipc/rpc.h"

#include <sys/socket.h>

namespace bulkhead {

using capnp::rpc::twoparty::Side;

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

// Where no descriptor may come in, what a peer attaches is closed at once. (A network that may attach none would not
// send any either.) `ended` becomes true before whoever reads learns that there is no more to come.
class GuardedStream final : public kj::AsyncCapabilityStream {
 public:
  GuardedStream(kj::Own<kj::AsyncCapabilityStream> inner, Descriptors descriptors, bool& ended)
      : inner_(kj::mv(inner)), descriptors_(descriptors), ended_(ended) {}

  kj::Promise<ReadResult> tryReadWithFds(void* buffer, size_t min_bytes, size_t max_bytes, kj::AutoCloseFd* fds,
                                         size_t max_fds) override {
    const bool taken = descriptors_ == Descriptors::kTaken;
    return inner_->tryReadWithFds(buffer, min_bytes, max_bytes, taken ? fds : nullptr, taken ? max_fds : 0)
        .then(
            [this, min_bytes](ReadResult result) -> kj::Promise<ReadResult> {
              ended_ = ended_ || result.byteCount < min_bytes;
              return result;
            },
            [this](kj::Exception&& error) -> kj::Promise<ReadResult> {
              ended_ = true;
              return kj::mv(error);
            });
  }
  kj::Promise<void> writeWithFds(kj::ArrayPtr<const kj::byte> data,
                                 kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> more,
                                 kj::ArrayPtr<const int> fds) override {
    return inner_->writeWithFds(data, more, fds);
  }
  kj::Promise<ReadResult> tryReadWithStreams(void* buffer, size_t min_bytes, size_t max_bytes,
                                             kj::Own<AsyncCapabilityStream>* streams, size_t) override {
    return inner_->tryReadWithStreams(buffer, min_bytes, max_bytes, streams, 0);
  }
  kj::Promise<void> writeWithStreams(kj::ArrayPtr<const kj::byte> data,
                                     kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> more,
                                     kj::Array<kj::Own<AsyncCapabilityStream>> streams) override {
    return inner_->writeWithStreams(data, more, kj::mv(streams));
  }
  kj::Promise<size_t> tryRead(void* buffer, size_t min_bytes, size_t max_bytes) override {
    return inner_->tryRead(buffer, min_bytes, max_bytes);
  }
  kj::Promise<void> write(const void* buffer, size_t size) override { return inner_->write(buffer, size); }
  kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) override {
    return inner_->write(pieces);
  }
  kj::Promise<void> whenWriteDisconnected() override { return inner_->whenWriteDisconnected(); }
  // What the end of a connection brings about. It is about to be closed, and a locked-down process has no other system
  // call for that.
  void shutdownWrite() override {}

 private:
  kj::Own<kj::AsyncCapabilityStream> inner_;
  const Descriptors descriptors_;
  bool& ended_;
};

kj::Own<kj::AsyncCapabilityStream> WrapSocket(kj::LowLevelAsyncIoProvider& io, OwnFd socket,
                                              SocketMode mode = SocketMode::kAny) {
  using Io = kj::LowLevelAsyncIoProvider;
  unsigned flags = Io::TAKE_OWNERSHIP | Io::ALREADY_CLOEXEC;
  if (mode == SocketMode::kNonBlocking) flags |= Io::ALREADY_NONBLOCK;
  return io.wrapUnixSocketFd(socket.Release(), flags);
}

}  // namespace

RpcConnection::RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, capnp::Capability::Client bootstrap,
                             Descriptors descriptors)
    : side_(Side::SERVER),
      stream_(kj::heap<GuardedStream>(WrapSocket(io, std::move(socket)), descriptors, ended_)),
      network_(*stream_, kMaxFdsPerMessage, side_, MessageLimits()),
      system_(capnp::makeRpcServer(network_, kj::mv(bootstrap))) {}

RpcConnection::RpcConnection(kj::LowLevelAsyncIoProvider& io, OwnFd socket, SocketMode mode)
    : side_(Side::CLIENT),
      stream_(kj::heap<GuardedStream>(WrapSocket(io, std::move(socket), mode), Descriptors::kTaken, ended_)),
      network_(*stream_, kMaxFdsPerMessage, side_, MessageLimits()),
      system_(capnp::makeRpcClient(network_)) {}

kj::Exception RpcConnection::Disconnected() {
  return kj::Exception(kj::Exception::Type::DISCONNECTED, __FILE__, __LINE__, kj::str("the connection has ended"));
}

control::File::Client MakeFile(OwnFd fd) { return kj::heap<FileServer>(std::move(fd)); }

control::File::Client ShareFile(int fd) { return MakeFile(OrThrow(DuplicateFd(fd))); }

OwnFd TakeFile(control::File::Client file, kj::WaitScope& wait) {
  KJ_IF_MAYBE (fd, file.getFd().wait(wait)) {
    return OrThrow(DuplicateFd(*fd));
  }
  throw FatalError("a granted file carries no descriptor", EBADF);
}

kj::Promise<OwnFd> AwaitFile(control::File::Client file) {
  // The descriptor lives as long as the capability.
  return file.getFd().then([file](kj::Maybe<int> fd) -> kj::Promise<OwnFd> {
    KJ_IF_MAYBE (number, fd) {
      auto taken = DuplicateFd(*number);
      if (!taken.ok()) return Failure(taken.error().message);
      return *std::move(taken);
    }
    return Failure("a file carries no descriptor");
  });
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
