// SPDX-License-Identifier: Apache-2.0
// The driver's side of a virtio-pci function, for tests: sets the function up by its registers, kicks and counts
// interrupts over real eventfds. One thread: RunPending is the device thread's turn.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "device-procs/common/event_loop.h"
#include "device-procs/common/virtio_pci_registers.h"
#include "device-procs/common/virtqueue_driver.h"

namespace bulkhead::device::test {

class FunctionDriver final : public FunctionRegisters {
 public:
  static constexpr uint64_t kBar0 = 0xC000'0000;

  // Vector 0 is for configuration changes, vector i + 1 for queue i.
  explicit FunctionDriver(std::unique_ptr<VirtioDevice> device, const GuestMemory& memory,
                          Recorder recorder = Recorder())
      : recorder_(std::move(recorder)) {
    const uint16_t queues = device->QueueCount();
    FunctionResources resources{.slot = 1, .bar0_address = kBar0, .kicks = {}, .interrupts = {}};
    const auto make = [](std::vector<OwnFd>& ours, std::vector<OwnFd>& theirs) {
      ours.push_back(OrThrow(MakeEventFd()));
      theirs.push_back(OrThrow(DuplicateFd(ours.back().get())));
    };
    for (uint16_t i = 0; i < queues; ++i) make(kicks_, resources.kicks);
    for (uint16_t i = 0; i <= queues; ++i) make(interrupts_, resources.interrupts);
    function_ = std::make_unique<VirtioPci>(std::move(device), loop_, memory, std::move(resources), recorder_);
    recorder_.Attach(*function_);
  }

  VirtioPci& function() { return *function_; }
  EventLoop& loop() { return loop_; }
  Recorder& recorder() { return recorder_; }

  void EnableMsix() { FunctionRegisters::EnableMsix(static_cast<uint16_t>(interrupts_.size())); }
  // How often the vector was signalled since last asked.
  uint64_t Interrupts(uint16_t vector) { return DrainEventFd(interrupts_[vector].get()); }

  void Kick(uint16_t queue) {
    SignalEventFd(kicks_[queue].get());
    RunPending();
  }
  bool KickIsPending(uint16_t queue) { return DrainEventFd(kicks_[queue].get()) != 0; }
  // One round of the device thread with what is ready now.
  void RunPending() {
    loop_.Stop();
    loop_.Run();
  }

 private:
  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override {
    return function_->Read(region, offset, width) & AllOnes(width);
  }
  WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override {
    const WriteEffect effect = function_->Write(region, offset, width, value & AllOnes(width));
    // The runner's part: it installs the route, then raises what was pending.
    if (effect.route && effect.route->deliver) SignalEventFd(interrupts_[effect.route->vector].get());
    return effect;
  }

  EventLoop loop_;
  Recorder recorder_;
  std::vector<OwnFd> kicks_;
  std::vector<OwnFd> interrupts_;
  std::unique_ptr<VirtioPci> function_;
};

}  // namespace bulkhead::device::test
