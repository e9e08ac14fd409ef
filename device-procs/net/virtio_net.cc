// SPDX-License-Identifier: Apache-2.0
#include "device-procs/net/virtio_net.h"

#include <sys/epoll.h>

#include <algorithm>

#include "device-procs/net/features.h"
#include "device-procs/net/net_state.capnp.h"
#include "device-procs/net/pair_worker.h"
#include "device-procs/net/vhost_pair.h"

namespace bulkhead::device {
namespace {

using namespace net_feature;

// Bits of the configuration's status (§5.1.4).
constexpr uint16_t kLinkUp = 1;
constexpr uint16_t kAnnounceNow = 2;

constexpr uint8_t kControlOk = 0;
constexpr uint8_t kControlError = 1;

constexpr uint16_t kStateVersion = 1;

}  // namespace

VirtioNet::VirtioNet(const GuestMemory& memory, EventLoop& loop, std::unique_ptr<NetBackend> backend,
                     VirtioNetOptions options)
    : memory_(memory),
      backend_(std::move(backend)),
      loop_(loop),
      guard_(std::move(options.sources)),
      kick_fds_(std::move(options.kick_fds)),
      log_(options.log),
      gone_event_(OrThrow(MakeEventFd())),
      link_on_(options.link_on) {
  if (kick_fds_.size() != QueueCount()) throw FatalError("the grants do not fit the number of queues");
  config_ = {.mac = guard_.rules().mac, .status = 0, .max_pairs = backend_->pair_count(), .mtu = options.mtu};
  const bool by_kernel = !options.vhosts.empty();
  features_ = OfferedFeatures(by_kernel);
  receive_throttle_.Set(options.throttle);
  transmit_throttle_.Set(options.throttle);
  backend_->SetOffloads({});
  backend_->SetActivePairs(1);

  const int control_kick = kick_fds_.back();
  loop_.Watch(control_kick, EPOLLIN, [this, control_kick] {
    DrainEventFd(control_kick);
    ServeControl();
  });
  loop_.Watch(gone_event_.get(), EPOLLIN, [this] { PortGone(); });
  if (by_kernel && options.vhosts.size() != backend_->pair_count()) {
    throw FatalError("the grants do not fit the number of pairs");
  }
  for (uint16_t i = 0; i < backend_->pair_count(); ++i) {
    workers_.push_back(by_kernel ? MakeVhostPair(i, std::move(options.vhosts[i])) : MakeWorker(i));
  }
  UpdateLink();
  if (by_kernel) outside_watch_.emplace(loop_, *backend_, [this] { PortGone(); });
}

std::unique_ptr<QueuePair> VirtioNet::MakeWorker(uint16_t pair) {
  return std::make_unique<PairWorker>(PairWorkerParts{
      .index = pair,
      .memory = &memory_,
      .port = &backend_->port(pair),
      .guard = &guard_,
      .receive_throttle = &receive_throttle_,
      .transmit_throttle = &transmit_throttle_,
      .receive_kick = kick_fds_[2u * pair],
      .transmit_kick = kick_fds_[2u * pair + 1],
      // A driver without VIRTIO_NET_F_MQ has its control queue there.
      .stray_kick = [control_kick = kick_fds_.back()] { SignalEventFd(control_kick); },
      .port_gone = [event = gone_event_.get()] { SignalEventFd(event); },
      .log = log_,
  });
}

std::unique_ptr<QueuePair> VirtioNet::MakeVhostPair(uint16_t pair, OwnFd vhost) {
  const std::array<int, VhostDevice::kQueues> kicks{kick_fds_[2u * pair], kick_fds_[2u * pair + 1]};
  // Edge-triggered, as the count is not read. What comes while the kernel serves a second pair costs a look in vain.
  if (pair == 1) loop_.Watch(kicks[VhostDevice::kReceive], EPOLLIN | EPOLLET, [this] { ServeControl(); });
  OwnFd broken = OrThrow(MakeEventFd());
  auto device = MakeVhostDevice(std::move(vhost), memory_, kicks, broken.get());
  return std::make_unique<VhostPair>(loop_, VhostPairParts{.index = pair,
                                                           .device = std::move(device),
                                                           .broken = std::move(broken),
                                                           .tap = backend_->port(pair).fd(),
                                                           .kicks = kicks,
                                                           .outside_gone = [this] { return backend_->IsGone(); }});
}

VirtioNet::~VirtioNet() {
  loop_.Unwatch(kick_fds_.back());
  loop_.Unwatch(gone_event_.get());
  if (outside_watch_ && workers_.size() > 1) loop_.Unwatch(kick_fds_[2]);
}

uint64_t VirtioNet::OfferedFeatures(bool by_kernel) const {
  const uint64_t offloads = kChecksum | kHostTso4 | kHostTso6 | kHostEcn | kGuestOffloads | kControlGuestOffloads;
  const uint64_t features =
      kMtu | kMac | kMergeBuffers | kStatus | kControlQueue | kControlReceive | kControlVlan | kAnnounce | kControlMac;
  // When the kernel interrupts is not for this process to say.
  return features | (by_kernel ? 0 : kCoalescing) | (backend_->has_offloads() ? offloads : 0) |
         (backend_->pair_count() > 1 ? kMultiQueue : 0);
}

ControlRules VirtioNet::Rules() const {
  const auto has = [this](uint64_t bit) { return (negotiated_ & bit) != 0; };
  return {.receive = has(kControlReceive),
          .vlan = has(kControlVlan),
          .announce = has(kAnnounce),
          .set_mac = has(kControlMac),
          .any_mac = guard_.rules().any_mac,
          .own_mac = guard_.rules().mac,
          .max_pairs = has(kMultiQueue) ? backend_->pair_count() : uint16_t{1},
          .coalesce = has(kCoalescing),
          .set_offloads = has(kControlGuestOffloads),
          .guest_offloads = negotiated_ & kGuestOffloads};
}

uint16_t VirtioNet::ControlIndex(uint64_t features) const {
  // §5.1.2: behind all pairs that the driver knows of.
  const bool all = (features & kMultiQueue) != 0;
  return static_cast<uint16_t>(2 * (all ? backend_->pair_count() : 1));
}

void VirtioNet::Activate(uint64_t features, VirtioTransport& transport) {
  transport_ = &transport;
  negotiated_ = features;
  if (!std::exchange(restored_, false)) {
    state_ = {};
    state_.filter.mac = guard_.rules().mac;
  }
  state_.filter.by_vlan = (features & kControlVlan) != 0;
  state_.announcing = state_.announcing && (features & kAnnounce) != 0;
  if ((features & kControlQueue) != 0) control_ = {transport, ControlIndex(features)};
  ApplyState(state_);
}

void VirtioNet::Deactivate() {
  StopWorkers(0);
  control_ = {};
  transport_ = nullptr;
  negotiated_ = 0;
  state_ = {};
  backend_->SetOffloads({});
  backend_->SetActivePairs(1);
  config_.mac = guard_.rules().mac;
  UpdateStatus();
}

void VirtioNet::ProcessQueue(uint16_t index) {
  // A pair looks at its queues when it starts.
  if (index == ControlIndex(negotiated_)) ServeControl();
}

bool VirtioNet::IsServedByKernel(uint16_t index, uint64_t features) const {
  return outside_watch_.has_value() && index < ControlIndex(features);
}

void VirtioNet::InterruptsChanged() {
  for (const auto& worker : workers_) worker->InterruptsChanged();
}

void VirtioNet::Pause() {
  paused_ = true;
  StopWorkers(0);
  LogCounters();
}

NetTotals VirtioNet::Received() const {
  NetTotals totals;
  for (const auto& worker : workers_) totals.Add(worker->received());
  return totals;
}

NetTotals VirtioNet::Sent() const {
  NetTotals totals;
  for (const auto& worker : workers_) totals.Add(worker->sent());
  return totals;
}

// So that a VM's end tells what its interfaces carried.
void VirtioNet::LogCounters() {
  if (outside_watch_) return;
  const auto line = [](const NetTotals& totals) {
    return std::to_string(totals.packets) + " packets (" + std::to_string(totals.bytes) + " bytes, " +
           std::to_string(totals.dropped) + " dropped)";
  };
  std::string counted = "received " + line(Received()) + ", sent " + line(Sent());
  // A VM that is paused again and again need not say the same.
  if (transport_ != nullptr && counted != counted_) log_(counted_ = std::move(counted));
}

void VirtioNet::ReportNet(control::NetReport::Builder report) const {
  const auto fill = [](const NetTotals& totals, control::NetTraffic::Builder out) {
    out.setPackets(totals.packets);
    out.setBytes(totals.bytes);
    out.setDropped(totals.dropped);
    out.setRefused(totals.refused);
  };
  report.setLink(Link());
  if (outside_watch_) return;  // the kernel counts, at the tap
  fill(Received(), report.initReceived());
  fill(Sent(), report.initSent());
}

void VirtioNet::Resume() {
  paused_ = false;
  StartWorkers();
  const bool untold = std::exchange(untold_, false);
  if (transport_ != nullptr && (state_.announcing || untold)) transport_->SignalConfigChange();
}

void VirtioNet::SetThrottle(control::DiskThrottle::Reader limits) {
  receive_throttle_.Set(ThrottleLimitsOf(limits));
  transmit_throttle_.Set(ThrottleLimitsOf(limits));
  // Those that wait under the old limits look again.
  for (uint16_t pair = 0; pair < workers_.size(); ++pair) SignalEventFd(kick_fds_[2u * pair + 1]);
}

void VirtioNet::ServeControl() {
  if (!Working() || !control_.served()) return;
  // At most one round of the ring before the loop sees to other events.
  for (uint16_t left = control_.size(); left != 0;) {
    if (!control_.Pop(chain_)) {
      if (control_.EnableKicks()) continue;
      control_.Signal();
      return;
    }
    --left;
    ControlState changed = state_;
    const bool done = ApplyControl(memory_, chain_, Rules(), changed);
    if (done) {
      ApplyState(std::move(changed));
      transport_->CommitState();
    }
    const std::byte answer{done ? kControlOk : kControlError};
    const bool written = WritePieces(memory_, chain_.writable, 0, std::span(&answer, 1)).ok();
    control_.Push({chain_.head, written ? 1u : 0u});
  }
  control_.Signal();
  control_.KickAgain();
}

void VirtioNet::ApplyState(ControlState state) {
  // A packet that was taken under other offloads is not one that the driver can be given any more.
  const bool same_offloads = state.offloads_off == state_.offloads_off;
  state_ = std::move(state);
  config_.mac = state_.filter.mac;
  UpdateStatus();
  StopWorkers(same_offloads ? state_.active_pairs : 0);
  backend_->SetOffloads(ReceiveOffloads(ActiveFeatures()));
  backend_->SetActivePairs(state_.active_pairs);
  for (const auto& worker : workers_) {
    worker->SetFilter(state_.filter);
    worker->SetCoalescing(state_.receive_coalescing, state_.transmit_coalescing);
  }
  StartWorkers();
}

void VirtioNet::StartWorkers() {
  if (!Working()) return;
  for (uint16_t pair = 0; pair < state_.active_pairs; ++pair) workers_[pair]->Start(*transport_, ActiveFeatures());
}

void VirtioNet::StopWorkers(size_t first) {
  for (size_t pair = first; pair < workers_.size(); ++pair) workers_[pair]->Stop();
}

control::LinkState VirtioNet::Link() const {
  if (outside_gone_) return control::LinkState::GONE;
  return link_on_ ? control::LinkState::UP : control::LinkState::DOWN;
}

void VirtioNet::UpdateStatus() {
  const bool up = Link() == control::LinkState::UP;
  config_.status = static_cast<uint16_t>((up ? kLinkUp : 0) | (state_.announcing ? kAnnounceNow : 0));
}

// Something that the link depends on has changed, or may have.
void VirtioNet::UpdateLink() {
  const uint16_t before = config_.status;
  UpdateStatus();
  for (const auto& worker : workers_) worker->SetLink(Link() == control::LinkState::UP);
  if (config_.status == before || transport_ == nullptr) return;
  if (paused_) {
    untold_ = true;
  } else {
    transport_->SignalConfigChange();
  }
}

control::LinkState VirtioNet::SetLink(bool up) {
  // One that cannot come up stays as it was.
  if (outside_gone_ && up) return control::LinkState::GONE;
  link_on_ = up;
  UpdateLink();
  return Link();
}

unsigned VirtioNet::AskPulse() {
  unsigned open = 0;
  for (const auto& worker : workers_) open = std::max(open, worker->AskPulse());
  return open;
}

void VirtioNet::FollowLog() {
  for (const auto& worker : workers_) worker->FollowLog();
}

void VirtioNet::LoseOutside() { SignalEventFd(gone_event_.get()); }

void VirtioNet::PortGone() {
  DrainEventFd(gone_event_.get());
  outside_gone_ = true;
  UpdateLink();
}

namespace {

void SaveLimits(const CoalesceLimits& limits, state::CoalesceState::Builder out) {
  out.setMaxPackets(limits.max_packets);
  out.setMaxMicroseconds(limits.max_usecs);
}

}  // namespace

void VirtioNet::SaveDevice(capnp::AnyPointer::Builder state) const {
  auto out = state.initAs<state::NetState>();
  const ReceiveFilter& filter = state_.filter;
  const auto data = [](const MacAddress& mac) { return kj::arrayPtr(mac.data(), mac.size()); };
  const auto table = [&](const std::vector<MacAddress>& from, capnp::List<capnp::Data>::Builder to) {
    for (unsigned i = 0; i < from.size(); ++i) to.set(i, data(from[i]));
  };
  out.setVersion(kStateVersion);
  out.setMac(data(config_.mac));
  out.setActivePairs(state_.active_pairs);
  out.setPromiscuous(filter.promiscuous);
  out.setAllMulticast(filter.all_multicast);
  table(filter.unicast, out.initUnicast(static_cast<unsigned>(filter.unicast.size())));
  table(filter.multicast, out.initMulticast(static_cast<unsigned>(filter.multicast.size())));
  out.setLinkOff(!link_on_);
  out.setOffloadsOff(state_.offloads_off);
  SaveLimits(state_.receive_coalescing, out.initReceiveCoalescing());
  SaveLimits(state_.transmit_coalescing, out.initTransmitCoalescing());
  if (filter.vlans.none()) return;
  auto vlans = out.initVlans(kVlans / 8);
  for (size_t vlan = 0; vlan < kVlans; ++vlan) {
    if (filter.vlans.test(vlan)) vlans[vlan / 8] |= static_cast<uint8_t>(1u << vlan % 8);
  }
}

namespace {

bool TakeLimits(state::CoalesceState::Reader from, CoalesceLimits& limits) {
  limits = {.max_packets = from.getMaxPackets(), .max_usecs = from.getMaxMicroseconds()};
  return limits.max_usecs <= kMaxCoalesceUsecs;
}

bool TakeMac(capnp::Data::Reader from, MacAddress& mac) {
  if (from.size() != mac.size()) return false;
  std::copy(from.begin(), from.end(), mac.begin());
  return true;
}

bool TakeMacs(capnp::List<capnp::Data>::Reader from, std::vector<MacAddress>& macs) {
  if (from.size() > kMaxFilteredMacs) return false;
  macs.resize(from.size());
  return std::ranges::all_of(macs, [&, i = 0u](MacAddress& mac) mutable { return TakeMac(from[i++], mac); });
}

bool TakeVlans(capnp::Data::Reader from, std::bitset<kVlans>& vlans) {
  if (from.size() != 0 && from.size() != kVlans / 8) return false;
  for (size_t vlan = 0; vlan < from.size() * 8; ++vlan) vlans.set(vlan, (from[vlan / 8] >> vlan % 8 & 1) != 0);
  return true;
}

}  // namespace

Result<void> VirtioNet::RestoreDevice(capnp::AnyPointer::Reader state) {
  const auto from = state.getAs<state::NetState>();
  if (from.getVersion() != kStateVersion) {
    return Error{EPROTO, "saved state of a network interface is of a version that is not known here"};
  }
  ControlState restored;
  ReceiveFilter& filter = restored.filter;
  filter.promiscuous = from.getPromiscuous();
  filter.all_multicast = from.getAllMulticast();
  restored.active_pairs = from.getActivePairs();
  restored.offloads_off = from.getOffloadsOff();
  if (!TakeMac(from.getMac(), filter.mac) || !TakeMacs(from.getUnicast(), filter.unicast) ||
      !TakeMacs(from.getMulticast(), filter.multicast) || !TakeVlans(from.getVlans(), filter.vlans) ||
      restored.active_pairs == 0 || restored.active_pairs > backend_->pair_count() ||
      (restored.offloads_off & ~kGuestOffloads) != 0 ||
      !TakeLimits(from.getReceiveCoalescing(), restored.receive_coalescing) ||
      !TakeLimits(from.getTransmitCoalescing(), restored.transmit_coalescing)) {
    return Error{EPROTO, "saved state of a network interface is not one that an interface can have"};
  }
  if (filter.mac != guard_.rules().mac && !guard_.rules().any_mac) {
    return Error{EPROTO, "saved state of a network interface is of one with another MAC address"};
  }
  // Switches along the way have to learn where it is now (§5.1.6.5.4).
  restored.announcing = true;
  state_ = std::move(restored);
  restored_ = true;
  link_on_ = !from.getLinkOff();
  UpdateLink();
  // What the driver knows of the link may be older than the state.
  untold_ = true;
  return {};
}

}  // namespace bulkhead::device
