// SPDX-License-Identifier: Apache-2.0
// virtio over PCI Express, modern interface only (virtio 1.2 §4.1): configuration space, the structures in BAR 0,
// queues and MSI-X of one function, as a DeviceModel whose region 0 is configuration space and region 1 BAR 0. Device
// thread, but for what VirtioTransport allows from others. All register values are the guest's: hostile.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "device-procs/common/event_loop.h"
#include "device-procs/common/msix.h"
#include "device-procs/common/pci_config.h"
#include "device-procs/common/recorder.h"
#include "device-procs/common/runtime.h"
#include "device-procs/common/virtio_device.h"
#include "device-procs/common/virtio_state.capnp.h"

namespace bulkhead::device {

class VirtioPci final : public DeviceModel, public VirtioTransport {
 public:
  enum Region : uint16_t { kConfigSpace, kBar0 };

  // Before lock-down; throws FatalError where the grants do not fit the device. `loop`, `memory` and `recorder` outlive
  // it; its queues are the first that the recorder has logs for.
  VirtioPci(std::unique_ptr<VirtioDevice> device, EventLoop& loop, const GuestMemory& memory,
            FunctionResources resources, Recorder& recorder);
  ~VirtioPci() override;

  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override;
  WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override;
  Result<void> ReadInput() override { return device_->ReadInput(); }
  void SetThrottle(control::DiskThrottle::Reader limits) override { device_->SetThrottle(limits); }
  void LoseOutside() override { device_->LoseOutside(); }
  control::LinkState SetLink(bool up) override { return device_->SetLink(up); }
  void ReportNet(control::NetReport::Builder report) const override { device_->ReportNet(report); }
  void FollowLog() override { device_->FollowLog(); }
  unsigned AskPulse() override { return device_->AskPulse(); }
  void Pause() override;
  void Resume() override;
  void Save(capnp::AnyPointer::Builder state) const override;
  Result<void> Restore(capnp::AnyPointer::Reader state) override;
  bool ReadChanges(uint16_t region, uint64_t offset) const override;

  Virtqueue* Queue(uint16_t index) override;
  int KickFd(uint16_t index) const override { return kicks_[index].get(); }
  void SignalQueue(uint16_t index) override;
  void SignalConfigChange() override;
  int InterruptFd(uint16_t index) const override { return msix_.DirectFd(queues_[index].vector); }
  void MarkNeedsReset() override;
  void CommitState() override;

 private:
  struct QueueRegisters {
    QueueLayout layout;
    bool enabled = false;
    std::atomic<uint16_t> vector = 0xFFFF;
    std::optional<Virtqueue> queue;
  };

  void BuildConfigSpace();
  uint64_t ReadConfigSpace(uint64_t offset, uint8_t width);
  WriteEffect WriteConfigSpace(uint64_t offset, uint8_t width, uint64_t value);
  uint64_t ReadBar(uint64_t offset, uint8_t width);
  WriteEffect WriteBar(uint64_t offset, uint8_t width, uint64_t value);
  bool WindowTarget(uint64_t* offset, uint8_t* width) const;
  uint64_t ReadCommon(uint64_t offset, uint8_t width) const;
  void WriteCommon(uint64_t offset, uint8_t width, uint64_t value);
  void WriteQueueField(QueueRegisters& queue, uint64_t offset, uint8_t width, uint64_t value);
  void WriteStatus(uint8_t status);
  bool Acceptable(uint64_t features) const;
  bool WantsActive() const;
  void Activate();
  void Reset();
  void InterruptsChanged();
  void Kicked(uint16_t index);
  void ProcessAllQueues();
  uint64_t OfferedFeatures() const;
  uint16_t CheckedVector(uint64_t vector) const;
  Result<void> RestoreParts(state::VirtioState::Reader from);
  Result<void> RestoreQueues(capnp::List<state::QueueState>::Reader queues);
  Result<Virtqueue> RestoreQueue(uint16_t index, state::QueueState::Reader from);

  std::unique_ptr<VirtioDevice> device_;
  EventLoop& loop_;
  const GuestMemory& memory_;
  Recorder& recorder_;
  std::vector<OwnFd> kicks_;
  Msix msix_;
  PciConfigSpace config_space_;
  uint8_t msix_capability_ = 0;
  uint8_t window_capability_ = 0;

  std::vector<QueueRegisters> queues_;
  uint8_t status_ = 0;
  std::atomic<bool> needs_reset_ = false;
  std::atomic<uint8_t> isr_ = 0;
  std::atomic<uint8_t> config_generation_ = 0;
  std::atomic<uint16_t> config_vector_ = 0xFFFF;
  uint32_t device_feature_select_ = 0;
  uint32_t driver_feature_select_ = 0;
  uint64_t driver_features_ = 0;
  uint16_t queue_select_ = 0;
  bool active_ = false;
  bool paused_ = true;
  bool owes_interrupts_ = false;  // a predecessor may have died before it signalled one
};

}  // namespace bulkhead::device
