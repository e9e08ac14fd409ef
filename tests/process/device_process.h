// SPDX-License-Identifier: Apache-2.0
// One real device process as the broker would start it, with this program as its broker and its runner: the same
// grants, sandbox and rings. Memory, kicks and interrupts are real.
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "broker/child.h"
#include "broker/child_uids.h"
#include "broker/device_plan.h"
#include "broker/wiring.h"
#include "ipc/guest_memory.h"
#include "ipc/pulse_line.h"
#include "vcpu-runner/device_channel.h"

namespace bulkhead::test {

// An interface of user-mode networking, which takes no rights.
inline control::NetConfig::Builder ConfigureUserNet(control::VmConfig::Builder vm) {
  auto net = vm.initNets(1)[0];
  net.initMac(6)[0] = 2;
  net.setMtu(1500);
  auto user = net.initUser();
  user.initNetwork4(4)[0] = 10;
  user.setPrefix4(24);
  user.setMtu(1500);
  return net;
}

class DeviceProcess {
 public:
  static constexpr uint64_t kMemoryBytes = 16 << 20;

  struct Options {
    std::function<void(control::VmConfig::Builder)> configure;
    std::function<void(broker::Planner&)> plan;  // its last plan is the one that counts
    std::string plan_name = {};                  // unless this is the name of another
    std::string executable = {};                 // instead of the plan's: a path
    std::string name = {};                       // instead of the plan's
    std::string settings_text = {};              // instead of its settings
    int64_t deadline_ns = int64_t{60} * 1'000'000'000;
    bool report_violations = true;
  };
  // Started, ready, loaded and resumed; throws if it ends before or refuses what it was given.
  DeviceProcess(kj::AsyncIoContext& io, const Options& options);
  // In the place of one that is paused: with its guest memory and its state.
  DeviceProcess(kj::AsyncIoContext& io, const Options& options, DeviceProcess& before);

  // Kills the process, if it still lives, and has another one go on in its place with the journal that it left.
  void Replace();

  pid_t pid() const { return child_->pid(); }
  const broker::DevicePlan& plan() const { return *plan_; }
  GuestMemory& memory() { return *memory_; }
  // Of what the process writes to guest memory, and of what this program writes there by memory().
  DirtyLog& dirty_log() { return dirty_logs_[0]; }
  DirtyLog& own_dirty_log() { return dirty_logs_[1]; }
  void LogWrites() { OrThrow(DirtyLog::SwitchOn(dirty_logs_)); }
  runner::DeviceChannel& channel() { return *channel_; }
  ChannelMemory* raw_channel() { return raw_channel_; }
  void RingDoorbell() { SignalEventFd(doorbell_.get()); }
  void Kick(size_t queue) { SignalEventFd(kicks_.at(queue).get()); }
  // Waits for an interrupt; false after a time that only a hang takes.
  bool AwaitInterrupt(size_t vector);
  // Whether there was one.
  bool HasInterrupt(size_t vector) { return DrainEventFd(interrupts_.at(vector).get()) != 0; }
  const PulseLine& pulse() const { return pulse_; }
  control::Device::Client& device() { return *device_; }
  kj::WaitScope& wait() { return io_.waitScope; }
  // How the process ended; waits for it.
  kj::Promise<std::string> WhenDead() { return death_.addBranch(); }
  std::string AwaitDeath() { return WhenDead().wait(io_.waitScope); }
  // Ends the connection to the process, as a broker that is gone.
  void HangUp() { child_->HangUp(); }

 private:
  class Host;
  DeviceProcess(kj::AsyncIoContext& io, const Options& options, OwnFd memory_file);
  void Start(bool successor);
  void FillGrants(control::DeviceGrants::Builder out, bool report_violations, bool successor);
  void TakeRunnersEnds(const Options& options);

  kj::AsyncIoContext& io_;
  const std::string executable_;  // of the options
  const bool report_violations_;
  std::vector<std::unique_ptr<broker::DevicePlan>> plans_;
  broker::DevicePlan* plan_ = nullptr;
  OwnFd memory_file_;
  std::optional<GuestMemory> memory_;
  OwnFd dirty_log_file_;
  std::vector<DirtyLog> dirty_logs_;
  std::unique_ptr<broker::Wiring> wiring_;
  OwnFd journal_;
  std::vector<OwnFd> stages_;
  const PulseLine pulse_ = PulseLine::Make();
  ChannelMemory* raw_channel_ = nullptr;
  OwnFd doorbell_;
  std::unique_ptr<runner::DeviceChannel> channel_;
  std::vector<OwnFd> kicks_;
  std::vector<OwnFd> interrupts_;
  kj::PromiseFulfillerPair<void> ready_;
  std::optional<control::Device::Client> device_;
  broker::ChildUids uids_{std::nullopt};
  std::unique_ptr<broker::Child> child_;
  kj::ForkedPromise<std::string> death_;
};

}  // namespace bulkhead::test
