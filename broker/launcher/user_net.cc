// SPDX-License-Identifier: Apache-2.0
#include "broker/launcher/user_net.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "ipc/result.h"

namespace bulkhead::launcher {
namespace {

constexpr int kBacklog = 64;
constexpr uint8_t kNetwork6[16] = {0xFE, 0xC0};

capnp::Data::Reader DataOf(const AddressBytes& bytes) { return {bytes.data(), bytes.size()}; }

std::string TextOf(const AddressBytes& address, uint16_t port) {
  char text[INET6_ADDRSTRLEN] = "";
  const bool ip6 = address.size() == sizeof(in6_addr);
  ::inet_ntop(ip6 ? AF_INET6 : AF_INET, address.data(), text, sizeof text);
  return (ip6 ? "[" + std::string(text) + "]" : text) + ":" + std::to_string(port);
}

[[noreturn]] void ThrowListenError(const UserNetOption::HostForward& forward) {
  const int error = errno;
  const std::string subject =
      "hostfwd: cannot listen on " + TextOf(forward.host_address, forward.host_port) + (forward.udp ? " (UDP)" : "");
  if (error == EADDRINUSE) throw FatalError(subject + ": address in use; name another port", error);
  if (error == EADDRNOTAVAIL) throw FatalError(subject + ": this host has no such address", error);
  if (error == EACCES) {
    throw FatalError(subject + ": ports below 1024 take root or CAP_NET_BIND_SERVICE; name another", error);
  }
  throw FatalError(ErrnoError(error, subject));
}

OwnFd Listen(const UserNetOption::HostForward& forward) {
  sockaddr_in in4{};
  in4.sin_family = AF_INET;
  in4.sin_port = htons(forward.host_port);
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(forward.host_port);
  const bool ip6 = forward.host_address.size() == sizeof in6.sin6_addr;
  if (ip6) std::memcpy(&in6.sin6_addr, forward.host_address.data(), sizeof in6.sin6_addr);
  if (!ip6) std::memcpy(&in4.sin_addr, forward.host_address.data(), sizeof in4.sin_addr);
  const auto* address = ip6 ? reinterpret_cast<const sockaddr*>(&in6) : reinterpret_cast<const sockaddr*>(&in4);

  OwnFd socket(::socket(ip6 ? AF_INET6 : AF_INET, (forward.udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0));
  const int on = 1;
  // What the last VM left in TIME_WAIT does not matter; of UDP it would let two have the same port.
  if (!socket.valid() || (!forward.udp && ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) ||
      (ip6 && ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
      ::bind(socket.get(), address, ip6 ? sizeof in6 : sizeof in4) != 0 ||
      (!forward.udp && ::listen(socket.get(), kBacklog) != 0)) {
    ThrowListenError(forward);
  }
  return socket;
}

}  // namespace

void FindResolvers(const std::string& text, OpenUserNet& net) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string key, address;
    if (!(words >> key >> address) || key != "nameserver") continue;
    AddressBytes bytes(sizeof(in6_addr));
    if (net.dns4.empty() && ::inet_pton(AF_INET, address.c_str(), bytes.data()) == 1) {
      bytes.resize(sizeof(in_addr));
      net.dns4 = bytes;
    } else if (net.dns6.empty() && ::inet_pton(AF_INET6, address.c_str(), bytes.data()) == 1) {
      net.dns6 = bytes;
    }
  }
}

OpenUserNet OpenUserNetwork(const UserNetOption& option) {
  OpenUserNet net;
  for (const auto& forward : option.host_forwards) net.listeners.push_back(Listen(forward));
  for (const AddressBytes& resolver : option.resolvers) {
    (resolver.size() == sizeof(in_addr) ? net.dns4 : net.dns6) = resolver;
  }
  if (!option.serves_dns || !option.resolvers.empty()) return net;
  std::ifstream file("/etc/resolv.conf");
  std::ostringstream text;
  text << file.rdbuf();
  FindResolvers(text.str(), net);
  return net;
}

void FillUserNet(const UserNetOption& option, const OpenUserNet& net, uint16_t mtu, control::UserNet::Builder out) {
  if (option.ip4) {
    out.setNetwork4(DataOf(option.network));
    out.setPrefix4(option.prefix);
  }
  if (option.ip6) out.setNetwork6({kNetwork6, sizeof kNetwork6});
  out.setHostname(option.hostname);
  out.setDns4(DataOf(net.dns4));
  out.setDns6(DataOf(net.dns6));
  out.setServesDns(option.serves_dns);
  out.setMtu(mtu);
  out.setRestricted(option.restricted);
  auto rules = out.initRules(static_cast<unsigned>(option.rules.size()));
  for (unsigned i = 0; i < rules.size(); ++i) {
    rules[i].setAllow(option.rules[i].allow);
    rules[i].setAddress(DataOf(option.rules[i].address));
    rules[i].setPrefix(option.rules[i].prefix);
    rules[i].setPort(option.rules[i].port);
  }
  auto host_forwards = out.initHostForwards(static_cast<unsigned>(option.host_forwards.size()));
  for (unsigned i = 0; i < host_forwards.size(); ++i) {
    host_forwards[i].setUdp(option.host_forwards[i].udp);
    host_forwards[i].setGuestAddress(DataOf(option.host_forwards[i].guest_address));
    host_forwards[i].setGuestPort(option.host_forwards[i].guest_port);
  }
  auto guest_forwards = out.initGuestForwards(static_cast<unsigned>(option.guest_forwards.size()));
  for (unsigned i = 0; i < guest_forwards.size(); ++i) {
    guest_forwards[i].setGuestAddress(DataOf(option.guest_forwards[i].guest_address));
    guest_forwards[i].setGuestPort(option.guest_forwards[i].guest_port);
    guest_forwards[i].setHostAddress(DataOf(option.guest_forwards[i].host_address));
    guest_forwards[i].setHostPort(option.guest_forwards[i].host_port);
  }
}

}  // namespace bulkhead::launcher
