// SPDX-License-Identifier: Apache-2.0
// virtio-net (virtio 1.2 §5.1): feature bits, configuration structure, control queue and life cycle of an interface;
// the packets are carried by a thread for each pair of queues, or by the kernel. Net process, device thread. The
// control queue is the guest's, saved state anyone's: hostile.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "device-procs/common/event_loop.h"
#include "device-procs/net/control.h"
#include "device-procs/net/outside_watch.h"
#include "device-procs/net/queue_pair.h"
#include "device-procs/net/transmitter.h"

namespace bulkhead::device {

struct VirtioNetOptions {
  SourceRules sources;  // with the interface's MAC address
  uint16_t mtu = 1500;
  bool link_on = true;
  ThrottleLimits throttle = {};  // of each direction
  std::vector<int> kick_fds;     // of each queue: two for each of the back end's pairs, and the control queue's
  Transmitter::Log log;          // any thread
  // /dev/vhost-net for each of the back end's pairs, so that the kernel carries the packets: then the back end is a
  // tap, whose ports are descriptors of its queues, and neither sources nor throttle limit anything.
  std::vector<OwnFd> vhosts = {};
};

class VirtioNet final : public VirtioDevice {
 public:
  // Before lock-down: starts the threads. Throws FatalError. Memory and loop outlive it.
  VirtioNet(const GuestMemory& memory, EventLoop& loop, std::unique_ptr<NetBackend> backend, VirtioNetOptions options);
  ~VirtioNet() override;

  uint16_t Type() const override { return 1; }
  uint32_t PciClass() const override { return 0x02'00'00; }  // Ethernet controller
  uint64_t Features() const override { return features_; }
  uint16_t QueueCount() const override { return static_cast<uint16_t>(2 * backend_->pair_count() + 1); }
  uint16_t QueueMaxSize() const override { return kQueueSize; }
  std::span<const std::byte> Config() const override { return std::as_bytes(std::span(&config_, 1)); }
  void WriteConfig(uint64_t, std::span<const std::byte>) override {}  // nothing in it is the driver's
  void Activate(uint64_t features, VirtioTransport& transport) override;
  void Deactivate() override;
  void ProcessQueue(uint16_t index) override;
  bool OwnsKicks() const override { return true; }
  bool IsServedByKernel(uint16_t index, uint64_t features) const override;
  void InterruptsChanged() override;
  void SetThrottle(control::DiskThrottle::Reader limits) override;
  void LoseOutside() override;
  control::LinkState SetLink(bool up) override;
  void FollowLog() override;
  unsigned AskPulse() override;
  void ReportNet(control::NetReport::Builder report) const override;
  void Pause() override;
  void Resume() override;
  void SaveDevice(capnp::AnyPointer::Builder state) const override;
  Result<void> RestoreDevice(capnp::AnyPointer::Reader state) override;

 private:
  static constexpr uint16_t kQueueSize = 256;
  // §5.1.4, little-endian.
  struct Registers {
    MacAddress mac{};
    uint16_t status = 0;
    uint16_t max_pairs = 0;
    uint16_t mtu = 0;
  };
  static_assert(sizeof(Registers) == 12);

  std::unique_ptr<QueuePair> MakeWorker(uint16_t pair);
  std::unique_ptr<QueuePair> MakeVhostPair(uint16_t pair, OwnFd vhost);
  uint64_t OfferedFeatures(bool by_kernel) const;
  ControlRules Rules() const;
  uint16_t ControlIndex(uint64_t features) const;
  // Without those that the driver does without.
  uint64_t ActiveFeatures() const { return negotiated_ & ~state_.offloads_off; }
  bool Working() const { return transport_ != nullptr && !paused_; }
  void ServeControl();
  void ApplyState(ControlState state);
  void StartWorkers();
  void StopWorkers(size_t first);
  control::LinkState Link() const;
  void UpdateStatus();
  void UpdateLink();
  NetTotals Received() const;
  NetTotals Sent() const;
  void LogCounters();
  void PortGone();

  const GuestMemory& memory_;
  const std::unique_ptr<NetBackend> backend_;
  EventLoop& loop_;
  const SourceGuard guard_;
  const std::vector<int> kick_fds_;
  const Transmitter::Log log_;
  Registers config_;
  uint64_t features_ = 0;
  Throttle receive_throttle_;
  Throttle transmit_throttle_;
  OwnFd gone_event_;  // by a pair's thread
  bool link_on_;      // as the VM's user wants it; a reset of the guest changes nothing
  bool outside_gone_ = false;
  std::string counted_;  // what was logged last

  VirtioTransport* transport_ = nullptr;  // while active
  uint64_t negotiated_ = 0;
  NetQueue control_;
  ControlState state_;
  bool restored_ = false;  // the next activation goes on with the state that was
  bool paused_ = true;
  bool untold_ = false;  // a change of the configuration while paused
  Chain chain_;
  std::optional<OutsideWatch> outside_watch_;
  std::vector<std::unique_ptr<QueuePair>> workers_;  // last: they use the rest
};

}  // namespace bulkhead::device
