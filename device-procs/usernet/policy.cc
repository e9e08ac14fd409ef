// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/policy.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "device-procs/common/runtime.h"

namespace bulkhead::usernet {
namespace {

void AllowSocket(SyscallPolicy& policy, uint64_t family, uint64_t type, uint64_t protocol, const char* reason) {
  policy.Allow(SYS_socket, reason, {Equals(0, family), Equals(1, type | SOCK_CLOEXEC), Equals(2, protocol)});
}

void AllowOption(SyscallPolicy& policy, uint64_t level, uint64_t option, const char* reason) {
  policy.Allow(SYS_setsockopt, reason, {Equals(1, level), Equals(2, option)});
}

}  // namespace

SyscallPolicy UserNetPolicy() {
  SyscallPolicy policy = device::RuntimePolicy();
  AllowSocket(policy, AF_INET, SOCK_STREAM, 0, "TCP of the guest's");
  AllowSocket(policy, AF_INET6, SOCK_STREAM, 0, "TCP of the guest's, IPv6");
  AllowSocket(policy, AF_INET, SOCK_DGRAM, 0, "UDP of the guest's");
  AllowSocket(policy, AF_INET6, SOCK_DGRAM, 0, "UDP of the guest's, IPv6");
  AllowSocket(policy, AF_INET, SOCK_DGRAM, IPPROTO_ICMP, "ping of the guest's; the kernel's own settings say who may");
  policy.Allow(SYS_connect, "TCP; where to is checked before (egress.h)");
  policy.Allow(SYS_accept4, "connections to forwarded ports of the host");
  policy.Allow(SYS_sendto, "data; where datagrams go to is checked before (egress.h)");
  policy.Allow(SYS_recvfrom, "data");
  policy.Allow(SYS_shutdown, "the end of one direction");
  policy.Allow(SYS_getpeername, "whether a connection that says nothing more is still one");
  policy.Allow(SYS_getsockopt, "how a connection went", {Equals(1, SOL_SOCKET), Equals(2, SO_ERROR)});
  AllowOption(policy, SOL_SOCKET, SO_REUSEADDR, "of each TCP socket");
  AllowOption(policy, SOL_SOCKET, SO_OOBINLINE, "of each TCP socket");
  AllowOption(policy, IPPROTO_TCP, TCP_NODELAY, "of each TCP socket");
  AllowOption(policy, IPPROTO_IP, IP_RECVERR, "of each UDP socket: what came of a datagram");
  AllowOption(policy, IPPROTO_IP, IP_TTL, "as the guest sent it");
  AllowOption(policy, IPPROTO_IPV6, IPV6_UNICAST_HOPS, "as the guest sent it");
  policy.AllowIoctl(FIONREAD, "how much a datagram has");
  policy.Allow(SYS_fcntl, "the mode of a new socket", {Equals(1, F_GETFL)});
  policy.Allow(SYS_fcntl, "the mode of a new socket", {Equals(1, F_SETFL)});
  return policy;
}

}  // namespace bulkhead::usernet
