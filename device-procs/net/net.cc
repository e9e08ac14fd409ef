// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/net.h"

#include <algorithm>
#include <iterator>

#include "device-procs/common/virtio_pci.h"
#include "device-procs/net/net_settings.capnp.h"
#include "device-procs/net/ring_backend.h"
#include "device-procs/net/tap.h"
#include "device-procs/net/virtio_net.h"

namespace bulkhead::device {
namespace {

template <typename Address>
Address TakeAddress(capnp::Data::Reader from) {
  Address address;
  if (from.size() != address.size()) throw FatalError("an address is not as long as it must be");
  std::copy(from.begin(), from.end(), address.begin());
  return address;
}

SourceRules TakeRules(net::NetSettings::Reader settings) {
  SourceRules rules{
      .mac = TakeAddress<MacAddress>(settings.getMac()), .any_mac = settings.getAnyMac(), .ip4 = {}, .ip6 = {}};
  for (auto address : settings.getIpAddresses()) {
    if (address.size() == sizeof(Ip4Address)) {
      rules.ip4.push_back(TakeAddress<Ip4Address>(address));
    } else {
      rules.ip6.push_back(TakeAddress<Ip6Address>(address));
    }
  }
  return rules;
}

// The second half of the files.
std::vector<OwnFd> TakeVhosts(std::vector<OwnFd>& files) {
  if (files.size() % 2 != 0) throw FatalError("the grants are not those of a tap and vhost-net");
  const auto middle = files.begin() + static_cast<ptrdiff_t>(files.size() / 2);
  std::vector<OwnFd> vhosts(std::make_move_iterator(middle), std::make_move_iterator(files.end()));
  files.erase(middle, files.end());
  return vhosts;
}

}  // namespace

std::unique_ptr<DeviceModel> MakeNet(DeviceContext context, Transmitter::Log log) {
  const auto settings = context.settings.getAs<net::NetSettings>();
  if (context.files.empty() == !context.packets || context.functions.size() != 1 || context.memory == nullptr) {
    throw FatalError("the grants are not those of a network interface");
  }
  FunctionResources& function = context.functions[0];
  VirtioNetOptions options{.sources = TakeRules(settings),
                           .mtu = settings.getMtu(),
                           .link_on = !settings.getLinkDown(),
                           .throttle = ThrottleLimitsOf(settings.getThrottle()),
                           .kick_fds = {},
                           .log = std::move(log),
                           .vhosts = settings.getVhost() ? TakeVhosts(context.files) : std::vector<OwnFd>()};
  for (const OwnFd& kick : function.kicks) options.kick_fds.push_back(kick.get());
  auto backend = context.packets ? MakeRingBackend(std::move(*context.packets)) : MakeTap(std::move(context.files));
  auto net = std::make_unique<VirtioNet>(*context.memory, *context.loop, std::move(backend), std::move(options));
  return std::make_unique<VirtioPci>(std::move(net), *context.loop, *context.memory, std::move(function),
                                     *context.recorder);
}

}  // namespace bulkhead::device
