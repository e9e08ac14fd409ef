// SPDX-License-Identifier: Apache-2.0
// A net process in the place of another, while packets are on their way: none is lost, repeated or out of order, and
// the driver notices nothing. In the place of one that died: as if the cable had been out for a moment.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <random>

#include "device-procs/common/virtqueue_driver.h"
#include "tests/process/process_function.h"
#include "tests/process/tap_network.h"

namespace bulkhead::test {
namespace {

using device::FeatureBit;
using device::test::QueueDriver;
using device::test::Used;

constexpr uint8_t kGuest = 7, kHost = 1;
constexpr uint32_t kHeader = 12;
constexpr uint16_t kQueueSize = 64;
constexpr Gpa kFrames{0x100000}, kRooms{0x200000};
constexpr uint32_t kRoomBytes = 2048;
constexpr uint64_t kFeatures = FeatureBit(15) | FeatureBit(29);  // merged buffers, event index
constexpr unsigned kTakeovers = 30, kPacketsEachWay = 40;

DeviceProcess::Options Net(const OwnFd& tap) {
  return {.configure =
              [&tap](control::VmConfig::Builder vm) {
                auto net = vm.initNets(1)[0];
                net.initTaps(1).set(0, MakeFile(OrThrow(DuplicateFd(tap.get()))));
                auto mac = net.initMac(6);
                mac[0] = 2;
                mac[5] = kGuest;
                net.setMtu(1500);
              },
          .plan = broker::PlanNets};
}

// The packet of that number: of a size of its own, with the number behind the Ethernet header.
std::string Frame(unsigned number, uint8_t to, uint8_t from) {
  std::string frame = TestFrame(60 + number % 1400, to, from);
  frame.replace(14, sizeof number, reinterpret_cast<const char*>(&number), sizeof number);
  return frame;
}

template <typename Condition>
bool Await(Condition condition) {
  const auto hung = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > hung) return false;
  }
  return true;
}

// A driver that goes on as processes change; its queues lie in the memory that the first one's object has mapped.
class Driver {
 public:
  explicit Driver(DeviceProcess& process)
      : receive_(process.memory(), Gpa{0x10000}, kQueueSize, true),
        transmit_(process.memory(), Gpa{0x20000}, kQueueSize, true) {
    ProcessFunction function(process);
    EXPECT_TRUE(function.Negotiate(device::test::kVersion1 | kFeatures));
    function.SetUpQueue(0, receive_.layout());
    function.SetUpQueue(1, transmit_.layout());
    function.EnableMsix(3);
    function.GoLive();
    for (uint16_t room = 0; room < kQueueSize; ++room) Post(process, room);
  }

  void Send(DeviceProcess& process, const std::string& frame) {
    ASSERT_TRUE(Await([&] { return Reclaim(), sending_ != kQueueSize; }));
    const Gpa at = kFrames + uint64_t{next_frame_++ % kQueueSize} * kRoomBytes;
    transmit_.PutText(at, std::string(kHeader, '\0') + frame);
    transmit_.Add({{at, static_cast<uint32_t>(kHeader + frame.size())}});
    ++sending_;
    process.Kick(1);
  }
  // The next packet that has come; empty if there is none.
  std::string TakeReceived(DeviceProcess& process) {
    const auto used = receive_.TakeUsed();
    if (!used) return "";
    const uint16_t room = rooms_[used->id];
    const std::string frame = receive_.GetText(kRooms + uint64_t{room} * kRoomBytes + kHeader, used->length - kHeader);
    Post(process, room);
    return frame;
  }

 private:
  void Post(DeviceProcess& process, uint16_t room) {
    const uint16_t head = receive_.Add({{kRooms + uint64_t{room} * kRoomBytes, kRoomBytes, true}});
    rooms_[head] = room;
    process.Kick(0);
  }
  void Reclaim() {
    while (transmit_.TakeUsed()) --sending_;
  }

  QueueDriver receive_, transmit_;
  std::array<uint16_t, kQueueSize> rooms_{};
  unsigned sending_ = 0, next_frame_ = 0;
};

TEST(NetTakeoverTest, AnotherProcessGoesOnUnderLoad) {
  if (!TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
  auto io = kj::setupAsyncIo();
  TapNetwork network(1);
  const std::vector<OwnFd> tap = network.TakeQueues();
  std::vector<std::unique_ptr<DeviceProcess>> processes;
  processes.push_back(std::make_unique<DeviceProcess>(io, Net(tap[0])));
  Driver driver(*processes.back());
  std::mt19937 random(1);  // NOLINT(cert-msc51-cpp): the same run each time
  unsigned sent = 0, received = 0, out = 0, in = 0;
  for (unsigned takeover = 0; takeover < kTakeovers; ++takeover) {
    const unsigned when = random() % kPacketsEachWay;
    for (unsigned i = 0; i < kPacketsEachWay; ++i) {
      if (i == when) {
        DeviceProcess& before = *processes.back();
        before.device().pauseRequest().send().wait(io.waitScope);
        processes.push_back(std::make_unique<DeviceProcess>(io, Net(tap[0]), before));
        before.HangUp();
        before.AwaitDeath();
      }
      driver.Send(*processes.back(), Frame(sent++, kHost, kGuest));
      network.Send(Frame(in++, kGuest, kHost));
    }
    while (out < sent) {
      ASSERT_EQ(network.Receive(), Frame(out, kHost, kGuest)) << "packet " << out << " of the guest";
      ++out;
    }
    while (received < in) {
      std::string frame;
      ASSERT_TRUE(Await([&] { return !(frame = driver.TakeReceived(*processes.back())).empty(); }));
      ASSERT_EQ(frame, Frame(received, kGuest, kHost)) << "packet " << received << " to the guest";
      ++received;
    }
  }
}

unsigned NumberOf(const std::string& frame) {
  unsigned number = 0;
  if (frame.size() >= 14 + sizeof number) std::memcpy(&number, frame.data() + 14, sizeof number);
  return number;
}

// A packet that is on its way when a process dies may be lost or come twice, as on a wire; none comes late, and those
// sent after that arrive.
TEST(NetTakeoverTest, AfterADeathPacketsFlowOn) {
  if (!TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
  constexpr unsigned kDeaths = 20;
  auto io = kj::setupAsyncIo();
  TapNetwork network(1);
  const std::vector<OwnFd> tap = network.TakeQueues();
  DeviceProcess process(io, Net(tap[0]));
  Driver driver(process);
  std::mt19937 random(1);  // NOLINT(cert-msc51-cpp): the same run each time
  unsigned number = 0, out = 0, in = 0;
  const auto send = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i, ++number) {
      driver.Send(process, Frame(number, kHost, kGuest));
      network.Send(Frame(number, kGuest, kHost));
    }
  };
  const auto comes_next = [](unsigned& last, const std::string& frame, uint8_t to, uint8_t from) {
    ASSERT_GE(NumberOf(frame), last);
    last = NumberOf(frame);
    ASSERT_EQ(frame, Frame(last, to, from));
  };
  for (unsigned death = 0; death < kDeaths && !HasFatalFailure(); ++death) {
    send(10 + random() % 20);
    ::usleep(random() % 1000);
    ASSERT_EQ(::kill(process.pid(), SIGKILL), 0);
    process.Replace();
    send(5);
    while (out != number - 1 && !HasFatalFailure()) comes_next(out, network.Receive(), kHost, kGuest);
    while (in != number - 1 && !HasFatalFailure()) {
      std::string frame;
      ASSERT_TRUE(Await([&] { return !(frame = driver.TakeReceived(process)).empty(); })) << "after death " << death;
      comes_next(in, frame, kGuest, kHost);
    }
  }
}

}  // namespace
}  // namespace bulkhead::test
