// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/tap.h"

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace bulkhead::launcher {
namespace {

constexpr uint32_t kMaxPairs = 8;
// Of a packet's header (virtio 1.2 §5.1.6), as the net process has it.
constexpr int kHeaderBytes = 12;
// The kernel puts a number in its place.
constexpr char kNewTap[] = "bulkhead%d";

// The requests about one network interface.
class Interface {
 public:
  Interface(std::string subject, const std::string& name)
      : subject_(std::move(subject)), socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    if (!socket_.valid()) ThrowErrno(subject_);
    std::memcpy(request_.ifr_name, name.c_str(), std::min(name.size() + 1, sizeof request_.ifr_name));
  }

  bool exists() { return Ask(SIOCGIFFLAGS); }
  int number() {
    Do(SIOCGIFINDEX, "look at it");
    return request_.ifr_ifindex;
  }
  // Somebody has it open: else a tap has no carrier. The interface's flags would tell the same, but only later.
  bool in_use() {
    ethtool_value link{.cmd = ETHTOOL_GLINK, .data = 0};
    request_.ifr_data = &link;
    return Ask(SIOCETHTOOL) && link.data != 0;
  }
  int mtu() {
    Do(SIOCGIFMTU, "look at its MTU");
    return request_.ifr_mtu;
  }
  void SetMtu(int mtu) {
    request_.ifr_mtu = mtu;
    Do(SIOCSIFMTU, "set its MTU to " + std::to_string(mtu));
  }
  void SetUp() {
    Do(SIOCGIFFLAGS, "look at it");
    request_.ifr_flags = static_cast<short>(request_.ifr_flags | IFF_UP);
    Do(SIOCSIFFLAGS, "turn it on");
  }
  // This one is a bridge.
  void AddPort(int number) {
    request_.ifr_ifindex = number;
    if (Ask(SIOCBRADDIF)) return;
    if (errno == EOPNOTSUPP || errno == EINVAL) throw FatalError(subject_ + ": is no bridge", errno);
    Fail("add a tap to it");
  }

 private:
  bool Ask(unsigned long what) { return ::ioctl(socket_.get(), what, &request_) == 0; }
  void Do(unsigned long what, const std::string& action) {
    if (!Ask(what)) Fail(action);
  }
  [[noreturn]] void Fail(const std::string& action) const {
    if (errno == EPERM || errno == EACCES) {
      throw FatalError(subject_ + ": no permission to " + action + "; that takes root or CAP_NET_ADMIN", errno);
    }
    ThrowErrno(subject_ + ": " + action);
  }

  const std::string subject_;
  OwnFd socket_;
  ifreq request_{};
};

OwnFd OpenDevice(const std::string& subject) {
  OwnFd file(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (file.valid()) return file;
  const int error = errno;
  if (error == ENOENT || error == ENODEV || error == ENXIO) {
    throw FatalError(subject + ": this host has no /dev/net/tun; load its driver with `modprobe tun`", error);
  }
  if (error == EACCES || error == EPERM) {
    throw FatalError(subject + ": no permission to open /dev/net/tun; it should have mode 666", error);
  }
  throw FatalError(ErrnoError(error, subject + ": open /dev/net/tun"));
}

// One queue of the tap of that name, which becomes the name it has. False, with errno, where the kernel refuses.
bool Attach(const OwnFd& file, std::string& name, bool many) {
  ifreq request{};
  std::memcpy(request.ifr_name, name.c_str(), name.size() + 1);
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (many ? IFF_MULTI_QUEUE : 0));
  if (::ioctl(file.get(), TUNSETIFF, &request) != 0) return false;
  name = request.ifr_name;
  return true;
}

[[noreturn]] void ThrowAttachError(const std::string& subject, const NetOption& net, bool many) {
  const int error = errno;
  const auto fail = [&](const std::string& why) { throw FatalError(subject + ": " + why, error); };
  const std::string make = "`ip tuntap add " + net.interface + " mode tap user USER" + (many ? " multi_queue`" : "`");
  switch (error) {
    case EPERM:
      if (net.kind == NetOption::Kind::kBridge)
        fail("no permission to make a tap for it; that takes root or CAP_NET_ADMIN");
      fail("there is no such tap, or it is another user's, and making one takes root; have root make it with " + make);
      break;
    case EBUSY:
      fail("is in use; stop the VM that has it (`bulkhead ps`), or name another");
      break;
    case EINVAL:
      fail(many ? "is no tap, or has one queue only; leave queues away, or have root make it with " + make
                : "is no tap; have root make one with " + make);
      break;
    case E2BIG:
      fail("has no queue left; stop the VM that has it (`bulkhead ps`), or name another");
      break;
    default:
      break;
  }
  throw FatalError(ErrnoError(error, subject));
}

void SetForm(const OwnFd& file, const std::string& subject) {
  int header_bytes = kHeaderBytes;
  int little_endian = 1;
  if (::ioctl(file.get(), TUNSETVNETHDRSZ, &header_bytes) != 0 ||
      ::ioctl(file.get(), TUNSETVNETLE, &little_endian) != 0) {
    ThrowErrno(subject + ": set the form of its packets");
  }
}

// All queues; a tap that others made and that has one is opened with one, unless the user wants more.
void OpenQueues(const NetOption& net, const std::string& subject, uint32_t wanted, OpenNet& opened) {
  bool many = wanted > 1;
  opened.queues.push_back(OpenDevice(subject));
  if (!Attach(opened.queues.front(), opened.name, many)) {
    // Which of both kinds it is only the attempt tells.
    const bool other_kind = errno == EINVAL && (net.queues < 2);
    if (!other_kind || !Attach(opened.queues.front(), opened.name, !many)) ThrowAttachError(subject, net, many);
    many = !many;
  }
  SetForm(opened.queues.front(), subject);
  while (many && opened.queues.size() < wanted) {
    opened.queues.push_back(OpenDevice(subject));
    if (!Attach(opened.queues.back(), opened.name, many)) ThrowAttachError(subject, net, many);
    SetForm(opened.queues.back(), subject);
  }
}

}  // namespace

OpenNet OpenTap(const NetOption& net, uint32_t cpus) {
  const bool on_bridge = net.kind == NetOption::Kind::kBridge;
  const std::string subject = (on_bridge ? "bridge '" : "tap '") + net.interface + "'";
  Interface named(subject, net.interface);
  const bool existed = named.exists();
  if (on_bridge && !existed) {
    throw FatalError(
        subject + ": there is no such interface; make it with `ip link add " + net.interface + " type bridge`", ENODEV);
  }
  if (!on_bridge && existed && named.in_use()) {
    throw FatalError(subject + ": is in use; stop the VM that has it (`bulkhead ps`), or name another", EBUSY);
  }
  OpenNet opened{.queues = {}, .name = on_bridge ? kNewTap : net.interface};
  OpenQueues(net, subject, net.queues != 0 ? net.queues : std::min(cpus, kMaxPairs), opened);

  Interface tap("tap '" + opened.name + "'", opened.name);
  const int mtu = net.mtu != 0 ? net.mtu : on_bridge ? named.mtu() : tap.mtu();
  if (on_bridge) named.AddPort(tap.number());
  if (mtu != tap.mtu()) tap.SetMtu(mtu);
  opened.mtu = static_cast<uint16_t>(std::min(mtu, 65535));
  // One that others made is theirs to turn on.
  if (on_bridge || !existed) tap.SetUp();
  return opened;
}

}  // namespace bulkhead::launcher
