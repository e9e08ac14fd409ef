// SPDX-License-Identifier: Apache-2.0
// libFuzzer: any rules and any destination. However it is written, what is the host's own or its neighbours' is open
// only where a rule allows something, nothing is where the guest is restricted, and a connection leads elsewhere only
// through a forward.
#include <arpa/inet.h>
#include <capnp/message.h>
#include <netinet/in.h>

#include <cstring>

#include "device-procs/usernet/egress.h"
#include "ipc/fuzz_input.h"

namespace {

using namespace bulkhead;
using fuzz::FuzzInput;
using fuzz::Require;

capnp::Data::Reader TakeData(FuzzInput& input, size_t bytes) {
  const auto taken = input.TakeBytes(bytes);
  static std::array<uint8_t, 16> data;
  data = {};
  std::memcpy(data.data(), taken.data(), taken.size());
  return {data.data(), bytes};
}

bool IsHosts4(uint32_t address) {
  return address >> 24 == 0 || address >> 24 == 127 || address >> 16 == 0xA9FE || address >= 0xE000'0000;
}

bool IsHosts(const sockaddr_in6& to) {
  if (to.sin6_family == AF_INET) {
    return IsHosts4(ntohl(reinterpret_cast<const sockaddr_in&>(to).sin_addr.s_addr));
  }
  const in6_addr& address = to.sin6_addr;
  const uint32_t last = ntohl(address.s6_addr32[3]);
  if (IN6_IS_ADDR_V4MAPPED(&address) || IN6_IS_ADDR_V4COMPAT(&address)) return IsHosts4(last);
  return IN6_IS_ADDR_UNSPECIFIED(&address) || IN6_IS_ADDR_LOOPBACK(&address) || IN6_IS_ADDR_LINKLOCAL(&address) ||
         IN6_IS_ADDR_MULTICAST(&address);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput input(data, size);
  capnp::MallocMessageBuilder message;
  auto net = message.initRoot<control::UserNet>();
  net.setRestricted(input.Take<uint8_t>() % 4 == 0);
  if (input.Take<uint8_t>() % 2 == 0) {
    net.setNetwork4(TakeData(input, 4));
    net.setPrefix4(static_cast<uint8_t>(8 + input.TakeBelow(20)));
  }
  bool any_allowed = false;
  auto rules = net.initRules(input.Take<uint8_t>() % 4);
  for (auto rule : rules) {
    const size_t bytes = input.Take<uint8_t>() % 2 == 0 ? 4 : 16;
    rule.setAddress(TakeData(input, bytes));
    rule.setPrefix(static_cast<uint8_t>(input.TakeBelow(8 * bytes + 1)));
    rule.setPort(input.Take<uint16_t>());
    rule.setAllow(input.Take<uint8_t>() % 2 == 0);
    any_allowed = any_allowed || rule.getAllow();
  }
  const usernet::Egress egress(net.asReader());
  while (!input.empty()) {
    sockaddr_in6 to{};
    const auto bytes = input.TakeBytes(sizeof to);
    std::memcpy(&to, bytes.data(), bytes.size());
    if (to.sin6_family % 4 != 0) to.sin6_family = to.sin6_family % 2 == 0 ? AF_INET : AF_INET6;
    const auto endpoint = usernet::EndpointOf(reinterpret_cast<const sockaddr*>(&to), bytes.size());
    Require(!endpoint || to.sin6_family == AF_INET || to.sin6_family == AF_INET6);
    if (!endpoint) continue;
    const auto route = egress.RouteConnection(*endpoint);
    Require(!route || *route == *endpoint);
    Require(route.has_value() == egress.AllowsDatagram(*endpoint));
    Require(!route || !net.getRestricted());
    Require(!route || any_allowed || !IsHosts(to));
  }
  return 0;
}
