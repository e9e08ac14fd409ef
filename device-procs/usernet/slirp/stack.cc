// SPDX-License-Identifier: Apache-2.0
#include "device-procs/usernet/slirp/stack.h"

#include <glib.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "ipc/child.h"
#include "ipc/ring.h"

namespace bulkhead::usernet {
namespace {

// Before the thread sees to the host's side.
constexpr unsigned kFramesAtATime = 64;
// As often the library takes one datagram of each socket, and of a stream what it has, before the guest is told.
constexpr unsigned kRoundsAtATime = 16;
// So often it is tried whether a socket has more than one.
constexpr uint32_t kRoundsUntilTried = 16;
constexpr int64_t kNsPerMs = 1'000'000;
// How long nobody is let in when there is no descriptor left.
constexpr int64_t kFullMs = 100;
// Where in its network the guest finds what (as QEMU's users know it).
constexpr uint8_t kGateway = 2, kResolver = 3, kFirstGuest = 15;

int64_t NowMs() { return MonotonicNow() / kNsPerMs; }

in_addr HostOf4(capnp::Data::Reader network, uint8_t number) {
  in_addr address{};
  std::memcpy(&address, network.begin(), std::min(network.size(), sizeof address));
  address.s_addr |= htonl(number);
  return address;
}

in6_addr HostOf6(capnp::Data::Reader network, uint8_t number) {
  in6_addr address{};
  std::memcpy(&address, network.begin(), std::min(network.size(), sizeof address));
  address.s6_addr[15] = number;
  return address;
}

// The library's own log would look for the system's.
GLogWriterOutput WriteLog(GLogLevelFlags, const GLogField* fields, gsize count, gpointer) {
  for (const GLogField& field : std::span(fields, count)) {
    if (std::strcmp(field.key, "MESSAGE") != 0) continue;
    const auto* text = static_cast<const char*>(field.value);
    LogLine(field.length < 0 ? std::string(text) : std::string(text, static_cast<size_t>(field.length)));
  }
  return G_LOG_WRITER_HANDLED;
}

}  // namespace

Stack::Stack(device::EventLoop& loop, control::UserNet::Reader settings, device::PacketResources packets,
             std::vector<OwnFd> listeners, Broken broken)
    : calls_(Egress(settings), settings),
      listeners_(std::move(listeners)),
      doorbell_(std::move(packets.doorbell)),
      peer_(std::move(packets.peer)),
      broken_(std::move(broken)),
      memory_(OrThrow(MapPacketLink(packets.memory.get()))),
      to_guest_(&memory_->to_net),
      from_guest_(&memory_->to_outside),
      frame_(kMaxRingFrameBytes),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_.valid()) ThrowErrno("create an epoll instance");
  ::g_log_set_writer_func(WriteLog, nullptr, nullptr);
  ::g_set_printerr_handler([](const gchar* text) { LogLine(text); });

  const std::string hostname = settings.getHostname().cStr();
  SlirpConfig config{};
  config.version = SLIRP_CONFIG_VERSION_MAX;
  const auto network4 = settings.getNetwork4();
  config.in_enabled = network4.size() != 0;
  config.vnetwork = HostOf4(network4, 0);
  config.vnetmask.s_addr = htonl(settings.getPrefix4() == 0 ? 0 : ~uint32_t{0} << (32 - settings.getPrefix4()));
  config.vhost = HostOf4(network4, kGateway);
  config.vdhcp_start = HostOf4(network4, kFirstGuest);
  config.vnameserver = HostOf4(network4, kResolver);
  const auto network6 = settings.getNetwork6();
  config.in6_enabled = network6.size() != 0;
  config.vprefix_addr6 = HostOf6(network6, 0);
  config.vprefix_len = 64;
  config.vhost6 = HostOf6(network6, kGateway);
  config.vnameserver6 = HostOf6(network6, kResolver);
  config.vhostname = hostname.empty() ? nullptr : hostname.c_str();
  config.if_mtu = config.if_mru = settings.getMtu();
  config.disable_dns = !settings.getServesDns();
  static const SlirpCb callbacks = Callbacks();
  slirp_.reset(::slirp_new(&config, &callbacks, this));
  if (!slirp_) throw FatalError("libslirp does not take these settings");
  AddForwards(settings);

  // Both say only that there is something: what that is, each round of the loop finds out.
  loop.Watch(doorbell_.get(), EPOLLIN | EPOLLET, [] {});
  loop.Watch(epoll_.get(), EPOLLIN, [] {});
  loop.SetPoller(this);
}

SlirpCb Stack::Callbacks() {
  SlirpCb callbacks{};
  callbacks.send_packet = [](const void* frame, size_t bytes, void* opaque) -> ssize_t {
    static_cast<Stack*>(opaque)->SendFrame(frame, bytes);
    return static_cast<ssize_t>(bytes);
  };
  callbacks.guest_error = [](const char* text, void*) { LogLine(std::string("the guest: ") + text); };
  callbacks.clock_get_ns = [](void*) { return MonotonicNow(); };
  callbacks.timer_new_opaque = [](SlirpTimerId id, void* argument, void* opaque) -> void* {
    auto& timers = static_cast<Stack*>(opaque)->timers_;
    return timers.emplace_back(std::make_unique<Timer>(Timer{.id = id, .argument = argument})).get();
  };
  callbacks.timer_free = [](void* timer, void* opaque) {
    std::erase_if(static_cast<Stack*>(opaque)->timers_, [timer](const auto& each) { return each.get() == timer; });
  };
  callbacks.timer_mod = [](void* timer, int64_t expires_ms, void*) {
    static_cast<Timer*>(timer)->expires_ms = expires_ms;
  };
  callbacks.register_poll_fd = [](int, void*) {};
  // Its number may be another socket's soon.
  callbacks.unregister_poll_fd = [](int fd, void* opaque) {
    auto* stack = static_cast<Stack*>(opaque);
    if (stack->watched_.erase(fd) != 0) ::epoll_ctl(stack->epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  };
  callbacks.notify = [](void*) {};
  callbacks.init_completed = [](Slirp*, void*) {};
  return callbacks;
}

void Stack::AddForwards(control::UserNet::Reader settings) {
  const auto forwards = settings.getHostForwards();
  if (forwards.size() != listeners_.size()) throw FatalError("the grants have not one socket for each forward");
  for (unsigned i = 0; i < forwards.size(); ++i) {
    const auto forward = forwards[i];
    sockaddr_storage host{};
    socklen_t host_bytes = sizeof host;
    if (::getsockname(listeners_[i].get(), reinterpret_cast<sockaddr*>(&host), &host_bytes) != 0) {
      ThrowErrno("look at a forwarded port");
    }
    sockaddr_in guest4{};
    guest4.sin_family = AF_INET;
    guest4.sin_port = htons(forward.getGuestPort());
    sockaddr_in6 guest6{};
    guest6.sin6_family = AF_INET6;
    guest6.sin6_port = htons(forward.getGuestPort());
    const auto address = forward.getGuestAddress();
    const bool is_ip4 = address.size() == sizeof guest4.sin_addr;
    if (is_ip4) std::memcpy(&guest4.sin_addr, address.begin(), sizeof guest4.sin_addr);
    if (!is_ip4) std::memcpy(&guest6.sin6_addr, address.begin(), sizeof guest6.sin6_addr);
    const auto* guest =
        is_ip4 ? reinterpret_cast<const sockaddr*>(&guest4) : reinterpret_cast<const sockaddr*>(&guest6);
    calls_.Adopt(listeners_[i]);
    const int added =
        ::slirp_add_hostxfwd(slirp_.get(), reinterpret_cast<const sockaddr*>(&host), host_bytes, guest,
                             is_ip4 ? sizeof guest4 : sizeof guest6, forward.getUdp() ? SLIRP_HOSTFWD_UDP : 0);
    if (added != 0) ThrowErrno("forward a port");
    calls_.Adopted(forward.getUdp());
  }
}

void Stack::Pause() {
  running_ = false;
  for (const auto& [fd, events] : watched_) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  watched_.clear();
  sleep_ms_ = -1;
}

bool Stack::PrepareToSleep() {
  if (!running_) return true;
  AskLibrary();
  int64_t sleep_ms = timeout_ms_ == UINT32_MAX ? -1 : int64_t{timeout_ms_};
  const auto until = [&](int64_t at_ms) {
    const int64_t left_ms = std::max<int64_t>(at_ms - NowMs(), 0);
    if (sleep_ms < 0 || left_ms < sleep_ms) sleep_ms = left_ms;
  };
  for (const auto& timer : timers_) {
    if (timer->expires_ms >= 0) until(timer->expires_ms);
  }
  if (accepts_at_ms_ != 0) until(accepts_at_ms_);
  sleep_ms_ = static_cast<int>(std::min<int64_t>(sleep_ms, INT32_MAX));
  return !more_frames_ && from_guest_.PrepareToSleep();
}

// Another round of the library begins: which of its sockets it waits for, and how long.
void Stack::AskLibrary() {
  const auto congested = to_guest_.Congested();
  if (!congested.ok()) broken_(congested.error());
  congested_ = *congested;
  polled_.clear();
  polled_by_fd_.clear();
  timeout_ms_ = UINT32_MAX;
  ::slirp_pollfds_fill(
      slirp_.get(), &timeout_ms_,
      [](int fd, int events, void* opaque) { return static_cast<Stack*>(opaque)->AddPoll(fd, events); }, this);
  Watch();
}

int Stack::AddPoll(int fd, int events) {
  uint32_t wanted = 0;
  const bool listens = std::ranges::any_of(listeners_, [fd](const OwnFd& each) { return each.get() == fd; });
  if ((events & SLIRP_POLL_IN) != 0 && !congested_ && !(listens && accepts_at_ms_ != 0)) wanted |= EPOLLIN;
  if ((events & SLIRP_POLL_OUT) != 0) wanted |= EPOLLOUT;
  if ((events & SLIRP_POLL_PRI) != 0) wanted |= EPOLLPRI;
  polled_by_fd_[fd] = polled_.size();
  polled_.push_back({.fd = fd, .wanted = wanted, .seen = 0});
  return static_cast<int>(polled_.size() - 1);
}

// Makes epoll wait for what the library does, and for nothing of a socket of which it wants nothing: a connection that
// was hung up would wake this thread again and again.
void Stack::Watch() {
  for (auto each = watched_.begin(); each != watched_.end();) {
    const auto polled = polled_by_fd_.find(each->first);
    const bool keep = polled != polled_by_fd_.end() && polled_[polled->second].wanted != 0;
    if (!keep) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, each->first, nullptr);
    each = keep ? std::next(each) : watched_.erase(each);
  }
  for (const Polled& polled : polled_) {
    if (polled.wanted == 0) continue;
    const auto [watched, is_new] = watched_.try_emplace(polled.fd, 0);
    if (watched->second == polled.wanted) continue;
    epoll_event event{.events = polled.wanted, .data = {.fd = polled.fd}};
    ::epoll_ctl(epoll_.get(), is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, polled.fd, &event);
    watched->second = polled.wanted;
  }
}

void Stack::Drain() {
  if (!running_) return;
  ServeSockets();
  RunTimers();
  TakeFrames();
  if (to_guest_.TakeWakeRequest()) SignalEventFd(peer_.get());
}

// A wake-up costs more than a look whether the sockets have more for it; where they seldom do, it is seldom looked.
void Stack::ServeSockets() {
  if (!Round()) return;
  if (!gathers_ && ++single_rounds_ % kRoundsUntilTried != 0) return;
  unsigned rounds = 1;
  while (rounds < kRoundsAtATime) {
    AskLibrary();
    if (!Round()) break;
    ++rounds;
  }
  gathers_ = rounds > 1;
}

// One round of the library, which begins with AskLibrary; true if its sockets had something.
bool Stack::Round() {
  const bool any = TakeEvents();
  if (accepts_at_ms_ != 0 && NowMs() >= accepts_at_ms_) accepts_at_ms_ = 0;
  ::slirp_pollfds_poll(
      slirp_.get(), 0,
      [](int index, void* opaque) {
        const uint32_t seen = static_cast<Stack*>(opaque)->polled_.at(static_cast<size_t>(index)).seen;
        return ((seen & EPOLLIN) != 0 ? SLIRP_POLL_IN : 0) | ((seen & EPOLLOUT) != 0 ? SLIRP_POLL_OUT : 0) |
               ((seen & EPOLLPRI) != 0 ? SLIRP_POLL_PRI : 0) | ((seen & EPOLLERR) != 0 ? SLIRP_POLL_ERR : 0) |
               ((seen & EPOLLHUP) != 0 ? SLIRP_POLL_HUP : 0);
      },
      this);
  if (calls_.TakeOutOfDescriptors()) accepts_at_ms_ = NowMs() + kFullMs;
  return any;
}

bool Stack::TakeEvents() {
  std::array<epoll_event, 64> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), 0);
  for (int i = 0; i < count; ++i) {
    const auto polled = polled_by_fd_.find(events[i].data.fd);
    if (polled != polled_by_fd_.end()) polled_[polled->second].seen = events[i].events;
  }
  return count > 0;
}

void Stack::RunTimers() {
  const int64_t now_ms = NowMs();
  for (size_t i = 0; i < timers_.size(); ++i) {
    Timer& timer = *timers_[i];
    if (timer.expires_ms < 0 || timer.expires_ms > now_ms) continue;
    timer.expires_ms = -1;
    ::slirp_handle_timer(slirp_.get(), timer.id, timer.argument);
  }
}

void Stack::TakeFrames() {
  const iovec space{frame_.data(), frame_.size()};
  unsigned left = kFramesAtATime;
  for (; left != 0; --left) {
    const auto bytes = from_guest_.Pop(std::span(&space, 1));
    if (!bytes.ok()) broken_(bytes.error());
    if (*bytes == 0) break;
    ::slirp_input(slirp_.get(), reinterpret_cast<const uint8_t*>(frame_.data()), static_cast<int>(*bytes));
  }
  more_frames_ = left == 0;
  if (from_guest_.TakeRoomRequest()) SignalEventFd(peer_.get());
}

// What finds no room is lost, as on any wire; TCP sends it again.
void Stack::SendFrame(const void* frame, size_t bytes) {
  const iovec piece{const_cast<void*>(frame), bytes};
  const auto pushed = to_guest_.Push(std::span(&piece, 1));
  if (!pushed.ok() && pushed.error().code == EPROTO) broken_(pushed.error());
}

}  // namespace bulkhead::usernet
