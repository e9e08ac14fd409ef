// SPDX-License-Identifier: Apache-2.0
// The real usernet process, sandboxed as ever, between servers on this host's loopback and a guest of frames; and
// behind the real net process.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <thread>

#include "ipc/rpc.h"
#include "tests/process/device_process.h"
#include "tests/process/packet_guest.h"

namespace bulkhead::test {
namespace {

constexpr uint32_t kLoopback = Ip4(127, 0, 0, 1);
constexpr int kHangMs = 60'000;
// Long enough for what would come, if it came.
constexpr int kSoonMs = 500;

using Configure = std::function<void(control::UserNet::Builder)>;

void SetBytes(uint32_t address, capnp::Data::Builder out) {
  for (size_t i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(address >> (24 - 8 * i));
}

// A socket on the loopback, bound to a port that was free.
class HostSocket {
 public:
  explicit HostSocket(int type, int family = AF_INET, uint32_t address = kLoopback)
      : socket_(::socket(family, type | SOCK_CLOEXEC, 0)) {
    sockaddr_in in4{};
    in4.sin_family = AF_INET;
    in4.sin_addr.s_addr = htonl(address);
    sockaddr_in6 in6{};
    in6.sin6_family = AF_INET6;
    in6.sin6_addr = in6addr_loopback;
    const bool ip4 = family == AF_INET;
    const auto* to = ip4 ? reinterpret_cast<const sockaddr*>(&in4) : reinterpret_cast<const sockaddr*>(&in6);
    EXPECT_EQ(::bind(socket_.get(), to, ip4 ? sizeof in4 : sizeof in6), 0);
    if (type == SOCK_STREAM) {
      EXPECT_EQ(::listen(socket_.get(), 8), 0);
    }
    sockaddr_in6 bound{};
    socklen_t bytes = sizeof bound;
    EXPECT_EQ(::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&bound), &bytes), 0);
    port_ = ntohs(bound.sin6_port);  // at the same place in both
  }

  uint16_t port() const { return port_; }
  const OwnFd& socket() const { return socket_; }
  bool IsReadable(int timeout_ms) const {
    pollfd wait{socket_.get(), POLLIN, 0};
    return ::poll(&wait, 1, timeout_ms) == 1;
  }
  // Takes one connection, says this and closes it.
  void Say(const std::string& text) const {
    if (!IsReadable(kHangMs)) return;
    const OwnFd connection(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_EQ(::send(connection.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  // Answers one datagram with this, or only takes it.
  std::string Answer(const std::string& text) const {
    std::string heard(2000, '\0');
    sockaddr_in6 from{};
    socklen_t bytes = sizeof from;
    if (!IsReadable(kHangMs)) return "";
    const ssize_t size =
        ::recvfrom(socket_.get(), heard.data(), heard.size(), 0, reinterpret_cast<sockaddr*>(&from), &bytes);
    heard.resize(size > 0 ? static_cast<size_t>(size) : 0);
    if (!text.empty())
      ::sendto(socket_.get(), text.data(), text.size(), 0, reinterpret_cast<const sockaddr*>(&from), bytes);
    return heard;
  }
  void SendTo(uint16_t port, const std::string& text) const {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(kLoopback);
    to.sin_port = htons(port);
    ::sendto(socket_.get(), text.data(), text.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  }

 private:
  OwnFd socket_;
  uint16_t port_ = 0;
};

// What a client reads from that port of the loopback until its end.
std::string ReadFrom(uint16_t port) {
  const OwnFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(kLoopback);
  to.sin_port = htons(port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return "cannot connect";
  std::string text;
  char bytes[100];
  for (ssize_t count; (count = ::recv(socket.get(), bytes, sizeof bytes, 0)) > 0;)
    text.append(bytes, static_cast<size_t>(count));
  return text;
}

class UserNetTest : public testing::Test {
 protected:
  DeviceProcess::Options Options(const Configure& configure, const std::vector<const HostSocket*>& listeners,
                                 const std::string& plan = "usernet0") {
    return {.configure =
                [configure, listeners](control::VmConfig::Builder vm) {
                  auto net = vm.initNets(1)[0];
                  net.initMac(6)[0] = 2;
                  net.setMtu(1500);
                  auto user = net.initUser();
                  SetBytes(Ip4(10, 0, 2, 0), user.initNetwork4(4));
                  user.setPrefix4(24);
                  auto network6 = user.initNetwork6(16);
                  network6[0] = 0xFE;
                  network6[1] = 0xC0;
                  user.setMtu(1500);
                  user.setServesDns(true);
                  if (configure) configure(user);
                  auto files = net.initListeners(static_cast<unsigned>(listeners.size()));
                  for (unsigned i = 0; i < files.size(); ++i) files.set(i, ShareFile(listeners[i]->socket().get()));
                },
            .plan = broker::PlanNets,
            .plan_name = plan};
  }
  void Start(const Configure& configure = nullptr, const std::vector<const HostSocket*>& listeners = {}) {
    process_ = std::make_unique<DeviceProcess>(*io_, Options(configure, listeners));
    guest_ = std::make_unique<PacketGuest>(*process_->plan().packets);
    ASSERT_TRUE(guest_->AskForLease());
  }
  static Configure AllowLoopback(uint16_t port) {
    return [port](control::UserNet::Builder user) {
      auto rules = user.initRules(2);
      for (unsigned i = 0; i < 2; ++i) {
        rules[i].setAllow(true);
        rules[i].setPort(port);
      }
      SetBytes(kLoopback, rules[0].initAddress(4));
      rules[0].setPrefix(32);
      rules[1].initAddress(16)[15] = 1;
      rules[1].setPrefix(128);
    };
  }
  static Configure Forward(bool udp, uint16_t guest_port, bool restricted = false) {
    return [=](control::UserNet::Builder user) {
      auto forward = user.initHostForwards(1)[0];
      forward.setUdp(udp);
      SetBytes(PacketGuest::kAddress, forward.initGuestAddress(4));
      forward.setGuestPort(guest_port);
      user.setRestricted(restricted);
    };
  }

  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
  std::unique_ptr<DeviceProcess> process_;
  std::unique_ptr<PacketGuest> guest_;
};

TEST_F(UserNetTest, GivesTheGuestItsAddress) {
  Start([](control::UserNet::Builder user) { user.setHostname("web1"); });
  const auto lease = guest_->AskForLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->address, PacketGuest::kAddress);
  EXPECT_EQ(lease->router, PacketGuest::kHost);
  EXPECT_EQ(lease->resolver, PacketGuest::kResolver);
  EXPECT_EQ(lease->hostname, "web1");
}

TEST_F(UserNetTest, ReachesWhatARuleNamesOfTheHostAndNothingElseOfIt) {
  const HostSocket open(SOCK_STREAM), closed(SOCK_STREAM);
  Start(AllowLoopback(open.port()));
  std::string text(300'000, 'x');
  std::thread server([&] { open.Say(text); });
  EXPECT_TRUE(guest_->Fetch(PacketGuest::kHost, open.port()) == text);
  server.join();
  EXPECT_FALSE(guest_->Fetch(PacketGuest::kHost, closed.port()));
  EXPECT_FALSE(guest_->Fetch(kLoopback, closed.port()));
  EXPECT_FALSE(closed.IsReadable(0));
}

TEST_F(UserNetTest, DatagramsGoWhereRulesLetThem) {
  const HostSocket open(SOCK_DGRAM), closed(SOCK_DGRAM);
  Start(AllowLoopback(open.port()));
  std::thread server([&] { EXPECT_EQ(open.Answer("answer"), "question"); });
  EXPECT_EQ(guest_->Ask(PacketGuest::kHost, open.port(), "question", kHangMs), "answer");
  server.join();
  EXPECT_FALSE(guest_->Ask(PacketGuest::kHost, closed.port(), "question", kSoonMs));
  EXPECT_FALSE(closed.IsReadable(0));
}

TEST_F(UserNetTest, RulesHoldForIpv6) {
  const HostSocket open(SOCK_STREAM, AF_INET6), closed(SOCK_STREAM, AF_INET6), closed_udp(SOCK_DGRAM, AF_INET6);
  Start(AllowLoopback(open.port()));
  guest_->SolicitNeighbour6();
  guest_->SendSyn6(closed.port());
  guest_->SendDatagram6(closed_udp.port(), "x");
  guest_->SendSyn6(open.port());
  EXPECT_TRUE(open.IsReadable(kHangMs));
  EXPECT_FALSE(closed.IsReadable(0));
  EXPECT_FALSE(closed_udp.IsReadable(0));
  const HostSocket open_udp(SOCK_DGRAM, AF_INET6);
  Start(AllowLoopback(open_udp.port()));
  guest_->SolicitNeighbour6();
  guest_->SendDatagram6(open_udp.port(), "hello");
  EXPECT_EQ(open_udp.Answer(""), "hello");
}

TEST_F(UserNetTest, WhatItsResolverIsAskedTheHostsIsAsked) {
  // Port 53 takes root to have.
  const OwnFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(Ip4(127, 0, 77, 53));
  address.sin_port = htons(53);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    GTEST_SKIP() << "this user may not have port 53";
  }
  Start([](control::UserNet::Builder user) { SetBytes(Ip4(127, 0, 77, 53), user.initDns4(4)); });
  std::thread server([&] {
    char heard[100];
    sockaddr_in from{};
    socklen_t bytes = sizeof from;
    pollfd wait{socket.get(), POLLIN, 0};
    if (::poll(&wait, 1, kHangMs) != 1) return;
    EXPECT_EQ(::recvfrom(socket.get(), heard, sizeof heard, 0, reinterpret_cast<sockaddr*>(&from), &bytes), 5);
    ::sendto(socket.get(), "answer", 6, 0, reinterpret_cast<const sockaddr*>(&from), bytes);
  });
  EXPECT_EQ(guest_->Ask(PacketGuest::kResolver, 53, "query", kHangMs), "answer");
  server.join();
}

TEST_F(UserNetTest, AForwardedPortLeadsToTheGuestAlsoWhereItIsRestricted) {
  for (const bool restricted : {false, true}) {
    const HostSocket listener(SOCK_STREAM), other(SOCK_STREAM);
    Start(Forward(false, 22, restricted), {&listener});
    std::string read;
    std::thread client([&] { read = ReadFrom(listener.port()); });
    EXPECT_TRUE(guest_->Serve(22, "hello from the guest"));
    client.join();
    EXPECT_EQ(read, "hello from the guest");
    EXPECT_FALSE(guest_->Fetch(PacketGuest::kHost, other.port()));
  }
}

TEST_F(UserNetTest, AForwardedPortOfUdpAnswersWhomItHeardAndNobodyElse) {
  const HostSocket listener(SOCK_DGRAM), client(SOCK_DGRAM), other(SOCK_DGRAM);
  Start(Forward(true, 53, true), {&listener});
  client.SendTo(listener.port(), "question");
  const auto heard = guest_->ReceiveDatagram(53, kHangMs);
  ASSERT_TRUE(heard);
  EXPECT_EQ(heard->first, "question");
  EXPECT_EQ(heard->second, client.port());
  guest_->SendDatagram(PacketGuest::kHost, other.port(), 53, "stray");
  guest_->SendDatagram(PacketGuest::kHost, client.port(), 53, "answer");
  EXPECT_EQ(client.Answer(""), "answer");
  EXPECT_FALSE(other.IsReadable(0));
}

TEST_F(UserNetTest, AForwardOfTheGuestsNetworkLeadsToTheHostWhateverTheRulesSay) {
  const HostSocket server(SOCK_STREAM);
  Start([&](control::UserNet::Builder user) {
    user.setRestricted(true);
    auto forward = user.initGuestForwards(1)[0];
    SetBytes(Ip4(10, 0, 2, 100), forward.initGuestAddress(4));
    forward.setGuestPort(80);
    SetBytes(kLoopback, forward.initHostAddress(4));
    forward.setHostPort(server.port());
  });
  std::thread thread([&] { server.Say("service"); });
  EXPECT_EQ(guest_->Fetch(Ip4(10, 0, 2, 100), 80), "service");
  thread.join();
  EXPECT_FALSE(guest_->Fetch(PacketGuest::kHost, server.port()));
}

TEST_F(UserNetTest, PingIsAnsweredByTheGatewayAndLeavesOnlyAsRulesSay) {
  Start(AllowLoopback(0));
  EXPECT_TRUE(guest_->Ping(PacketGuest::kHost, kHangMs));
  // Whether a user may ping is the host's to say.
  (void)guest_->Ping(kLoopback, kSoonMs);
  Start();
  EXPECT_FALSE(guest_->Ping(kLoopback, kSoonMs));
}

TEST_F(UserNetTest, PausedItTakesNothingIn) {
  Start();
  process_->device().pauseRequest().send().wait(process_->wait());
  guest_->Send(std::string(60, 'x'));
  EXPECT_FALSE(guest_->Ping(PacketGuest::kHost, kSoonMs));
  process_->device().resumeRequest().send().wait(process_->wait());
  EXPECT_TRUE(guest_->Ping(PacketGuest::kHost, kHangMs));
}

TEST_F(UserNetTest, SavesAndRestoresWhatASnapshotCanKeep) {
  Start();
  process_->device().pauseRequest().send().wait(process_->wait());
  auto saved = process_->device().saveRequest().send().wait(process_->wait());
  auto request = process_->device().restoreRequest();
  request.getState().set(saved.getState());
  request.send().wait(process_->wait());
  process_->device().resumeRequest().send().wait(process_->wait());
  EXPECT_TRUE(guest_->Ping(PacketGuest::kHost, kHangMs));
}

// Connections are gone with a process; what the guest has been told, and ports of the host, are not.
TEST_F(UserNetTest, AnotherInItsPlaceServesTheSameGuest) {
  const HostSocket listener(SOCK_STREAM);
  Start(Forward(false, 22), {&listener});
  for (unsigned death = 0; death < 3; ++death) {
    for (unsigned i = 0; i < 100; ++i) guest_->Send(std::string(60 + i, 'x'));
    process_->Replace();
    EXPECT_TRUE(guest_->Ping(PacketGuest::kHost, kHangMs));
    std::string read;
    std::thread client([&] { read = ReadFrom(listener.port()); });
    EXPECT_TRUE(guest_->Serve(22, "still here"));
    client.join();
    EXPECT_EQ(read, "still here");
    const auto lease = guest_->AskForLease();
    ASSERT_TRUE(lease);
    EXPECT_EQ(lease->address, PacketGuest::kAddress);
  }
}

TEST_F(UserNetTest, ABrokenRingIsItsEndAndIsSaid) {
  Start();
  auto* memory = OrThrow(MapPacketLink(process_->plan().packets->memory.get()));
  memory->to_outside.head += 3;
  SignalEventFd(process_->plan().packets->doorbell.get());
  EXPECT_NE(process_->AwaitDeath().find("ended with status 1"), std::string::npos);
}

TEST_F(UserNetTest, GarbageFromTheGuestEndsNothing) {
  Start();
  uint32_t state = 1;
  for (unsigned i = 0; i < 3000; ++i) {
    std::string frame(14 + i % 200, '\0');
    for (char& byte : frame) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
    const uint16_t types[] = {0x0800, 0x0806, 0x86DD, 0x88F8};
    frame[12] = static_cast<char>(types[i % 4] >> 8);
    frame[13] = static_cast<char>(types[i % 4]);
    if (i % 4 == 0 && frame.size() > 40) frame[14] = 0x45;
    guest_->Send(frame);
    while (!guest_->Receive(0).empty()) continue;
  }
  EXPECT_TRUE(guest_->Ping(PacketGuest::kHost, kHangMs));
}

}  // namespace
}  // namespace bulkhead::test
