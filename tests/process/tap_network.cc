// SPDX-License-Identifier: Apache-2.0
#include "tests/process/tap_network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>

namespace bulkhead::test {
namespace {

constexpr uint16_t kTestType = 0x88B5;  // for experiments (IEEE 802, §9.2.4)
constexpr int kHangMs = 60'000;
constexpr char kName[] = "tap0";

// This thread in a namespace of its own, for as long as it lives.
class OwnNamespace {
 public:
  OwnNamespace() : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
    if (!before_.valid() || ::unshare(CLONE_NEWNET) != 0) ThrowErrno("make a network namespace");
  }
  ~OwnNamespace() { ::setns(before_.get(), CLONE_NEWNET); }
  OwnFd Open() const { return OwnFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)); }

 private:
  OwnFd before_;
};

OwnFd OpenQueue(bool many) {
  OwnFd queue(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  ifreq request{};
  std::strcpy(request.ifr_name, kName);
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (many ? IFF_MULTI_QUEUE : 0));
  int header_bytes = 12;
  if (::ioctl(queue.get(), TUNSETIFF, &request) != 0 || ::ioctl(queue.get(), TUNSETVNETHDRSZ, &header_bytes) != 0) {
    ThrowErrno("make a tap");
  }
  return queue;
}

OwnFd OpenSocket() {
  OwnFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(kTestType)));
  ifreq request{};
  std::strcpy(request.ifr_name, kName);
  request.ifr_flags = IFF_UP;
  if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) ThrowErrno("turn the tap on");
  if (::ioctl(socket.get(), SIOCGIFINDEX, &request) != 0) ThrowErrno("look at the tap");
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(kTestType);
  address.sll_ifindex = request.ifr_ifindex;
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) ThrowErrno("listen at the tap");
  return socket;
}

}  // namespace

bool TapNetwork::Possible() { return ::geteuid() == 0 && ::access("/dev/net/tun", R_OK | W_OK) == 0; }

TapNetwork::TapNetwork(unsigned queues) {
  const OwnNamespace own;
  namespace_ = own.Open();
  // Nobody but the test says anything there.
  std::ofstream("/proc/sys/net/ipv6/conf/default/disable_ipv6") << "1";
  for (unsigned i = 0; i < queues; ++i) queues_.push_back(OpenQueue(queues > 1));
  socket_ = OpenSocket();
  routes_ = OwnFd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!routes_.valid()) ThrowErrno("make a netlink socket");
}

void TapNetwork::LeaveToOthers() {
  if (::ioctl(queues_.front().get(), TUNSETPERSIST, 1) != 0) ThrowErrno("keep the tap");
  queues_.clear();
}

bool TapNetwork::Enter() const { return ::setns(namespace_.get(), CLONE_NEWNET) == 0; }

void TapNetwork::RemoveTap() const {
  sockaddr_ll address{};
  socklen_t length = sizeof address;
  if (::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) ThrowErrno("look at the tap");
  struct {
    nlmsghdr header;
    ifinfomsg link;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_DELLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.link.ifi_index = address.sll_ifindex;
  struct {
    nlmsghdr header;
    nlmsgerr error;
  } answer{};
  if (::send(routes_.get(), &request, sizeof request, 0) != static_cast<ssize_t>(sizeof request) ||
      ::recv(routes_.get(), &answer, sizeof answer, 0) < 0) {
    ThrowErrno("remove the tap");
  }
  if (answer.error.error != 0) throw FatalError("remove the tap", -answer.error.error);
}

void TapNetwork::Send(const std::string& frame) const {
  if (!TrySend(frame)) ThrowErrno("send a frame to the tap");
}

bool TapNetwork::TrySend(const std::string& frame) const {
  return ::send(socket_.get(), frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size());
}

bool TapNetwork::WaitForFrame(int timeout_ms) const {
  pollfd wait{socket_.get(), POLLIN, 0};
  return ::poll(&wait, 1, timeout_ms) == 1;
}

bool TapNetwork::TakesLargePackets() const {
  ethtool_value value{.cmd = ETHTOOL_GTSO, .data = 0};
  ifreq request{};
  std::strcpy(request.ifr_name, kName);
  request.ifr_data = reinterpret_cast<char*>(&value);
  if (::ioctl(socket_.get(), SIOCETHTOOL, &request) != 0) ThrowErrno("ask for the tap's features");
  return value.data != 0;
}

std::string TapNetwork::Receive() const {
  if (!WaitForFrame(kHangMs)) return "";
  char frame[70'000];
  const ssize_t bytes = ::recv(socket_.get(), frame, sizeof frame, 0);
  return {frame, bytes > 0 ? static_cast<size_t>(bytes) : 0};
}

std::string TestFrame(size_t bytes, uint8_t to, uint8_t from) {
  std::string frame{2, 0, 0, 0, 0, static_cast<char>(to), 2, 0, 0, 0, 0, static_cast<char>(from)};
  frame.append("\x88\xB5");
  while (frame.size() < bytes) frame.push_back(static_cast<char>(frame.size() * 7));
  return frame;
}

}  // namespace bulkhead::test
