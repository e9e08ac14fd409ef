// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/tap.h"

#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cerrno>

namespace bulkhead::device {
namespace {

// Of a tap whose interface was removed (Documentation/networking/tuntap.rst), or whose queue is detached.
bool IsGone(int error) { return error == EBADFD; }

Error PortError(int error, const char* what) { return ErrnoError(IsGone(error) ? ENODEV : error, what); }

class TapPort final : public NetPort {
 public:
  explicit TapPort(OwnFd file) : file_(std::move(file)) {}

  int fd() const override { return file_.get(); }

  Result<void> Send(std::span<const iovec> packet) override {
    const ssize_t sent = ::writev(file_.get(), packet.data(), static_cast<int>(packet.size()));
    // It does not say when it has room again.
    if (sent < 0) return PortError(errno == EAGAIN ? ENOBUFS : errno, "send a packet to the tap");
    return {};
  }

  Result<size_t> Receive(std::span<const iovec> space) override {
    const ssize_t taken = ::readv(file_.get(), space.data(), static_cast<int>(space.size()));
    if (taken >= 0) return static_cast<size_t>(taken);
    if (errno == EAGAIN || errno == EINTR) return size_t{0};
    return PortError(errno, "take a packet from the tap");
  }

 private:
  OwnFd file_;
};

class Tap final : public NetBackend {
 public:
  explicit Tap(std::vector<OwnFd> queues) : attached_(static_cast<uint16_t>(queues.size())) {
    for (OwnFd& queue : queues) ports_.push_back(std::make_unique<TapPort>(std::move(queue)));
  }

  uint16_t pair_count() const override { return static_cast<uint16_t>(ports_.size()); }
  bool has_offloads() const override { return true; }
  NetPort& port(uint16_t pair) override { return *ports_.at(pair); }

  void SetOffloads(const Offloads& offloads) override {
    offloads_ = (offloads.checksum ? TUN_F_CSUM : 0u) | (offloads.tso4 ? TUN_F_TSO4 : 0u) |
                (offloads.tso6 ? TUN_F_TSO6 : 0u) | (offloads.ecn ? TUN_F_TSO_ECN : 0u);
    // Of a tap that is gone nothing arrives any more.
    ::ioctl(ports_.front()->fd(), TUNSETOFFLOAD, offloads_);
  }

  // The kernel spreads packets over the queues that are attached.
  void SetActivePairs(uint16_t count) override {
    for (uint16_t pair = 0; pair < pair_count(); ++pair) {
      const bool attach = pair < count;
      if (attach == (pair < attached_)) continue;
      ifreq request{};
      request.ifr_flags = static_cast<short>(attach ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE);
      ::ioctl(ports_[pair]->fd(), TUNSETQUEUE, &request);
    }
    attached_ = count;
  }

  // Asked by what it would be told anyway, so that nothing more need be allowed.
  bool IsGone() override { return ::ioctl(ports_.front()->fd(), TUNSETOFFLOAD, offloads_) != 0 && errno == EBADFD; }

 private:
  std::vector<std::unique_ptr<TapPort>> ports_;
  uint16_t attached_;
  unsigned offloads_ = 0;
};

void CheckQueue(const OwnFd& queue, bool many) {
  ifreq request{};
  int header_bytes = 0;
  // The process before may have had it when it was there; that it is gone is found where packets are.
  const bool seen = ::ioctl(queue.get(), TUNGETIFF, &request) == 0;
  if (!seen && IsGone(errno)) return;
  if (!seen || ::ioctl(queue.get(), TUNGETVNETHDRSZ, &header_bytes) != 0) ThrowErrno("look at the tap");
  const int wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (many ? IFF_MULTI_QUEUE : 0);
  if ((request.ifr_flags & wanted) != wanted || header_bytes != int{sizeof(PacketHeader)}) {
    throw FatalError("the tap was not opened as it must be");
  }
}

}  // namespace

std::unique_ptr<NetBackend> MakeTap(std::vector<OwnFd> queues) {
  for (const OwnFd& queue : queues) CheckQueue(queue, queues.size() > 1);
  return std::make_unique<Tap>(std::move(queues));
}

}  // namespace bulkhead::device
