// SPDX-License-Identifier: Apache-2.0
// The net processes, one per network interface: with the descriptors of a tap, or joined to a usernet process.
#include "broker/device_plan.h"
#include "broker/plans/user_net_check.h"
#include "device-procs/net/net_settings.capnp.h"
#include "ipc/packet_ring.h"
#include "ipc/rpc.h"

namespace bulkhead::broker {
namespace {

// Each costs a thread; more than this many never paid.
constexpr unsigned kMaxPairs = 8;
constexpr size_t kMacBytes = 6;
constexpr size_t kIp4Bytes = 4;
constexpr size_t kIp6Bytes = 16;
constexpr unsigned kMaxAddresses = 64;
constexpr uint16_t kMinMtu = 68;  // RFC 791
// Its heap (device-procs/usernet), and what the library takes beside that.
constexpr uint64_t kUserNetMemory = uint64_t{320} << 20;

void CheckAddresses(control::NetConfig::Reader config, const std::string& name) {
  const auto mac = config.getMac();
  if (mac.size() != kMacBytes || (mac[0] & 1) != 0) throw FatalError(name + ": its MAC address is none of a host");
  if (config.getIpAddresses().size() > kMaxAddresses) {
    throw FatalError(name + ": more than " + std::to_string(kMaxAddresses) + " IP addresses");
  }
  for (auto address : config.getIpAddresses()) {
    if (address.size() != kIp4Bytes && address.size() != kIp6Bytes) throw FatalError(name + ": an IP address is none");
  }
}

// The process that keeps the host's network, at the other end of the packet link.
void PlanUserNet(Planner& planner, control::NetConfig::Reader config, unsigned index, DevicePlan& net) {
  const std::string name = "usernet" + std::to_string(index);
  const auto user = config.getUser();
  CheckUserNet(user, config.getListeners().size(), name);
  DevicePlan& plan = planner.Add(name, "bulkhead-usernet");
  plan.keeps_network = true;
  plan.outside_of = net.name;
  // Its connections are gone with it; those that come later, and forwarded ports, need not be.
  plan.replacement = DevicePlan::Replacement::kAlways;
  plan.limits.memory_bytes = kUserNetMemory;
  for (auto listener : config.getListeners()) plan.files.push_back(TakeFile(listener, planner.wait()));
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  plan.settings->setRoot(user);

  const OwnFd memory = OrThrow(MakePacketLink("packets-" + net.name));
  const OwnFd to_net = OrThrow(MakeEventFd());
  const OwnFd to_outside = OrThrow(MakeEventFd());
  const auto copy = [](const OwnFd& fd) { return OrThrow(DuplicateFd(fd.get())); };
  net.packets = {.memory = copy(memory), .doorbell = copy(to_net), .peer = copy(to_outside)};
  plan.packets = {.memory = copy(memory), .doorbell = copy(to_outside), .peer = copy(to_net)};
}

// What passes by the net process it can neither hold against rules nor slow down.
void CheckVhost(control::NetConfig::Reader config, const std::string& name) {
  if (config.hasUser()) throw FatalError(name + ": vhost takes a tap");
  const auto throttle = config.getThrottle();
  if (!config.getAnyMac() || config.getIpAddresses().size() != 0 || throttle.getBytesPerSecond() != 0 ||
      throttle.getOperationsPerSecond() != 0) {
    throw FatalError(name + ": with vhost the guest's packets can be neither held against addresses nor limited");
  }
}

void PlanNet(Planner& planner, control::NetConfig::Reader config, unsigned index) {
  const std::string name = "net" + std::to_string(index);
  CheckAddresses(config, name);
  const auto taps = config.getTaps();
  const unsigned pairs = config.hasUser() ? 1 : taps.size();
  if (pairs == 0 || pairs > kMaxPairs || (config.hasUser() && taps.size() != 0)) {
    throw FatalError(name + ": a network interface has 1 to " + std::to_string(kMaxPairs) + " pairs of queues");
  }
  if (config.getMtu() < kMinMtu) throw FatalError(name + ": its MTU is less than " + std::to_string(kMinMtu));
  DevicePlan& plan = planner.Add(name, "bulkhead-net");
  for (auto tap : taps) plan.files.push_back(TakeFile(tap, planner.wait()));
  // And the control queue.
  planner.AddVirtioFunction(plan, static_cast<uint16_t>(2 * pairs + 1));
  const bool vhost = config.hasVhost();
  if (vhost) {
    CheckVhost(config, name);
    for (unsigned i = 0; i < pairs; ++i) plan.sources.push_back(config.getVhost());
  }
  (vhost ? plan.limits.kernel_threads : plan.limits.threads) += pairs;
  plan.takes_throttle = !vhost;
  plan.kernel_writes = vhost;
  plan.has_link = true;
  plan.replacement = DevicePlan::Replacement::kAlways;
  plan.settings = std::make_unique<capnp::MallocMessageBuilder>();
  auto settings = plan.settings->initRoot<net::NetSettings>();
  settings.setMac(config.getMac());
  settings.setMtu(config.getMtu());
  settings.setAnyMac(config.getAnyMac());
  settings.setIpAddresses(config.getIpAddresses());
  settings.setThrottle(config.getThrottle());
  settings.setLinkDown(config.getLinkDown());
  settings.setVhost(vhost);
  if (config.hasUser()) PlanUserNet(planner, config, index, plan);
}

}  // namespace

void PlanNets(Planner& planner) {
  unsigned index = 0;
  for (auto net : planner.config().getNets()) PlanNet(planner, net, index++);
}

}  // namespace bulkhead::broker
