// SPDX-License-Identifier: Apache-2.0
// The real net process, sandboxed as ever, between a real tap and a fake runner's driver.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "broker/launcher/vhost_net.h"
#include "device-procs/common/virtqueue_driver.h"
#include "ipc/rpc.h"
#include "tests/process/process_function.h"
#include "tests/process/tap_network.h"

namespace bulkhead::test {

inline constexpr uint16_t kQueueSize = 16;
inline constexpr Gpa kData{0x100000};
inline constexpr uint32_t kHeader = 12;
inline constexpr uint8_t kGuest = 7, kHost = 1;
// Checksums and segments both ways, merged buffers, control queue, many pairs.
inline constexpr uint64_t kOffloads = device::FeatureBit(0) | device::FeatureBit(1) | device::FeatureBit(7) |
                                      device::FeatureBit(8) | device::FeatureBit(11);
inline constexpr uint64_t kFeatures =
    kOffloads | device::FeatureBit(15) | device::FeatureBit(17) | device::FeatureBit(22);

inline DeviceProcess::Options Net(TapNetwork& network, bool vhost = false) {
  return {.configure =
              [&network, vhost](control::VmConfig::Builder vm) {
                auto net = vm.initNets(1)[0];
                std::vector<OwnFd> queues = network.TakeQueues();
                auto taps = net.initTaps(static_cast<unsigned>(queues.size()));
                for (unsigned i = 0; i < taps.size(); ++i) taps.set(i, MakeFile(std::move(queues[i])));
                net.setAnyMac(vhost);
                if (vhost) net.setVhost(launcher::MakeVhostNetSource());
                auto mac = net.initMac(6);
                mac[0] = 2;
                mac[5] = kGuest;
                net.setMtu(1500);
              },
          .plan = broker::PlanNets};
}

class NetFunction final : public ProcessFunction {
 public:
  using ProcessFunction::ProcessFunction;

  void Start(uint64_t features, uint16_t queues, uint16_t queue_size = kQueueSize) {
    ASSERT_TRUE(Negotiate(device::test::kVersion1 | features));
    queues_.clear();
    OrThrow(process().memory().Fill(Gpa{0x10000}, 0x2000u * queues, std::byte{0}));
    for (uint16_t i = 0; i < queues; ++i) {
      queues_.push_back(
          std::make_unique<device::test::QueueDriver>(process().memory(), Gpa{0x10000u + 0x2000u * i}, queue_size));
      SetUpQueue(i, queues_.back()->layout());
    }
    EnableMsix(static_cast<uint16_t>(queues + 1));
    GoLive();
  }
  // Goes on with the queues of another process's function, in memory that is a copy.
  void TakeOverQueues(const NetFunction& other) {
    for (const auto& queue : other.queues_) {
      queues_.push_back(std::make_unique<device::test::QueueDriver>(process().memory(), *queue));
    }
  }
  device::test::QueueDriver& queue(uint16_t index) { return *queues_[index]; }
  device::test::Used Wait(uint16_t index) {
    EXPECT_TRUE(process().AwaitInterrupt(index + 1u));
    return queue(index).TakeUsed().value_or(device::test::Used{});
  }
  // Until so many are used; false if one is missing.
  bool WaitFor(uint16_t index, unsigned count) {
    for (unsigned used = 0; used < count;) {
      if (queue(index).TakeUsed()) {
        ++used;
      } else if (!process().AwaitInterrupt(index + 1u)) {
        return false;
      }
    }
    return true;
  }
  void Send(const std::string& frame, uint16_t pair = 0) {
    const auto index = static_cast<uint16_t>(2 * pair + 1);
    queue(index).PutText(kData, std::string(kHeader, '\0') + frame);
    queue(index).Add({{kData, static_cast<uint32_t>(kHeader + frame.size())}});
    process().Kick(index);
    Wait(index);
  }
  void Post(uint16_t index, Gpa at, uint32_t bytes) {
    queue(index).Add({{at, bytes, true}});
    process().Kick(index);
  }
  // The device's answer.
  int Control(uint16_t index, const std::string& command) {
    queue(index).PutText(kData, command);
    queue(index).Add({{kData, static_cast<uint32_t>(command.size())}, {kData + 0x100, 1, true}});
    process().Kick(index);
    Wait(index);
    return queue(index).Get<uint8_t>(kData + 0x100);
  }
  int SetPairs(uint16_t index, uint8_t count) { return Control(index, {4, 0, static_cast<char>(count), 0}); }

 private:
  std::vector<std::unique_ptr<device::test::QueueDriver>> queues_;
};

class NetProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!TapNetwork::Possible()) GTEST_SKIP() << "only root can make a tap, where there is /dev/net/tun";
  }
  // On the heap: its destructor may throw, a test's may not.
  std::unique_ptr<kj::AsyncIoContext> io_ = std::make_unique<kj::AsyncIoContext>(kj::setupAsyncIo());
};

}  // namespace bulkhead::test
