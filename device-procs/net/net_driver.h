// SPDX-License-Identifier: Apache-2.0
// A guest's virtio-net driver, for tests: the real device with its real threads, driven over guest memory and eventfds,
// with a fake outside. The calling thread is the device thread.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device-procs/common/virtio_pci_driver.h"
#include "device-procs/net/fake_backend.h"
#include "device-procs/net/features.h"
#include "device-procs/net/virtio_net.h"

namespace bulkhead::device::test {

inline constexpr MacAddress kTestMac{0x02, 0x11, 0x22, 0x33, 0x44, 0x55};

// A frame from and to addresses, of an EtherType that is nobody's, filled up with a pattern.
inline std::string TestFrame(size_t bytes, const MacAddress& from = kTestMac,
                             const MacAddress& to = {2, 0, 0, 0, 0, 1}) {
  std::string frame(to.begin(), to.end());
  frame.append(from.begin(), from.end()).append("\x88\xB5");
  while (frame.size() < bytes) frame.push_back(static_cast<char>(frame.size() * 7));
  frame.resize(bytes);
  return frame;
}
inline std::string Packet(const PacketHeader& header, const std::string& frame) {
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + frame;
}

class NetDriver {
 public:
  static constexpr uint16_t kQueueSize = 64;
  static constexpr uint64_t kQueuePart = 0x4000;
  static constexpr Gpa kData{0x100000};
  static constexpr uint64_t kMemoryBytes = 16 << 20;

  explicit NetDriver(const GuestMemory& memory, uint16_t pairs = 1, SourceRules sources = {.mac = kTestMac},
                     bool link_on = true)
      : memory_(memory) {
    auto backend = std::make_unique<FakeBackend>(pairs);
    backend_ = backend.get();
    VirtioNetOptions options{.sources = std::move(sources), .mtu = 1500, .link_on = link_on, .kick_fds = {}, .log = {}};
    options.log = [this](const std::string& line) {
      std::lock_guard lock(log_mutex_);
      log_.push_back(line);
    };
    for (uint16_t i = 0; i < 2 * pairs + 1; ++i) {
      kicks_.push_back(OrThrow(MakeEventFd()));
      options.kick_fds.push_back(kicks_.back().get());
    }
    function_ = std::make_unique<FunctionDriver>(
        std::make_unique<VirtioNet>(memory, loop_, std::move(backend), std::move(options)), memory);
    function_->function().Resume();
  }

  // Reset to DRIVER_OK with fresh queues, as many as a driver with these features has.
  void SetUp(uint64_t features) {
    ASSERT_TRUE(function_->Negotiate(kVersion1 | features));
    const bool many = (features & net_feature::kMultiQueue) != 0;
    const uint16_t pairs = many ? backend_->pair_count() : 1;
    const bool control = (features & net_feature::kControlQueue) != 0;
    queues_.clear();
    for (uint16_t i = 0; i < 2 * pairs + (control ? 1 : 0); ++i) {
      OrThrow(memory_.Fill(Gpa{i * kQueuePart}, kQueuePart, std::byte{0}));
      queues_.push_back(std::make_unique<QueueDriver>(memory_, Gpa{i * kQueuePart}, kQueueSize));
      function_->SetUpQueue(i, queues_[i]->layout());
    }
    function_->EnableMsix();
    function_->GoLive();
  }

  void Kick(uint16_t queue) { SignalEventFd(kicks_[queue].get()); }
  // The device thread's turn.
  void RunPending() {
    loop_.Stop();
    loop_.Run();
  }
  Used Wait(uint16_t queue) {
    Used used;
    WaitUntil([&] {
      const auto taken = ring(queue).TakeUsed();
      if (taken) used = *taken;
      return taken.has_value();
    });
    return used;
  }
  // Sends one packet in one buffer and waits until it is given back.
  void Send(const std::string& packet, uint16_t pair = 0) {
    const auto queue = static_cast<uint16_t>(2 * pair + 1);
    ring(queue).PutText(kData, packet);
    ring(queue).Add({{kData, static_cast<uint32_t>(packet.size())}});
    Kick(queue);
    Wait(queue);
  }
  // A command with its arguments; the device's answer.
  int Control(const std::string& command) {
    const auto queue = static_cast<uint16_t>(queues_.size() - 1);
    const Gpa answer = kData + 0xFF000;
    ring(queue).PutText(kData + 0xF0000, command);
    ring(queue).Put<uint8_t>(answer, 0xEE);
    ring(queue).Add(
        {{kData + 0xF0000, 2}, {kData + 0xF0002, static_cast<uint32_t>(command.size() - 2)}, {answer, 1, true}});
    Kick(queue);
    WaitUntil([&] {
      RunPending();
      return ring(queue).TakeUsed().has_value();
    });
    return ring(queue).Get<uint8_t>(answer);
  }

  template <typename Condition>
  void WaitUntil(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "the device did not answer";
        return;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  FakePort& port(uint16_t pair = 0) { return backend_->port(pair); }
  FakeBackend& backend() { return *backend_; }
  FunctionDriver& function() { return *function_; }
  QueueDriver& ring(uint16_t queue) { return *queues_.at(queue); }
  std::vector<std::string> log() {
    std::lock_guard lock(log_mutex_);
    return log_;
  }
  template <typename T>
  T Config(uint64_t offset) {
    return static_cast<T>(function_->ReadBar(virtio_pci::kDeviceConfig + offset, sizeof(T)));
  }
  void TakeOverRings(NetDriver& other) { queues_.swap(other.queues_); }

 private:
  const GuestMemory& memory_;
  std::mutex log_mutex_;
  std::vector<std::string> log_;
  std::vector<OwnFd> kicks_;
  EventLoop loop_;
  FakeBackend* backend_ = nullptr;  // the device's
  std::vector<std::unique_ptr<QueueDriver>> queues_;
  std::unique_ptr<FunctionDriver> function_;  // last: its threads use the rest
};

}  // namespace bulkhead::device::test
