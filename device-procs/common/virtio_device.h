// SPDX-License-Identifier: Apache-2.0
// What a virtio device is to its transport (virtio 1.2 §2, §3) and the transport to it: the transport owns PCI
// configuration, the common registers and the queues' set-up; the device owns feature bits, device configuration and
// the work. Device thread, where nothing else is said.
#pragma once

#include <capnp/any.h>

#include <cstdint>
#include <span>

#include "device-procs/common/virtqueue.h"
#include "ipc/control.capnp.h"
#include "ipc/result.h"

namespace bulkhead::device {

inline constexpr uint64_t FeatureBit(unsigned bit) { return uint64_t{1} << bit; }

// The transport, as its device sees it.
class VirtioTransport {
 public:
  virtual ~VirtioTransport() = default;
  // Null where the driver did not enable the queue. Valid between Activate and Deactivate; the caller sees to it that
  // one thread at a time uses it.
  virtual Virtqueue* Queue(uint16_t index) = 0;
  // The eventfd of a queue's kicks, for a device that waits for them itself.
  virtual int KickFd(uint16_t index) const = 0;
  // Interrupts for used buffers and for configuration changes (§2.9, §2.4). Any thread.
  virtual void SignalQueue(uint16_t index) = 0;
  virtual void SignalConfigChange() = 0;
  // For a queue that the kernel serves: the eventfd that interrupts the guest for its used buffers as SignalQueue
  // would, until the device hears of InterruptsChanged; -1: only SignalQueue does.
  virtual int InterruptFd(uint16_t /*index*/) const { return -1; }
  // The driver broke the protocol: DEVICE_NEEDS_RESET (§2.1.1). Any thread.
  virtual void MarkNeedsReset() = 0;
  // The device's own state has changed, and the driver is about to be told: it must not be lost with this process.
  virtual void CommitState() {}
};

class VirtioDevice {
 public:
  virtual ~VirtioDevice() = default;

  virtual uint16_t Type() const = 0;          // §5
  virtual uint32_t PciClass() const = 0;      // class, subclass, programming interface: 24 bits
  virtual uint64_t Features() const = 0;      // offered device features; the transport adds its own (§6)
  virtual uint16_t QueueCount() const = 0;    // at most virtio_pci::kMaxQueues
  virtual uint16_t QueueMaxSize() const = 0;  // a power of two
  // The device configuration structure as the driver sees it now.
  virtual std::span<const std::byte> Config() const = 0;
  virtual void WriteConfig(uint64_t offset, std::span<const std::byte> data) = 0;  // hostile; in bounds of Config()

  // DRIVER_OK: the enabled queues are valid until Deactivate. `features` is the negotiated set.
  virtual void Activate(uint64_t features, VirtioTransport& transport) = 0;
  // The driver reset the device: when this returns no request is in flight and no queue is used any more.
  virtual void Deactivate() = 0;
  // Queue `index` was kicked, or may have been; only while active and not paused.
  virtual void ProcessQueue(uint16_t index) = 0;
  // True: the device waits for its kick eventfds itself, and ProcessQueue means "look at the queue now".
  virtual bool OwnsKicks() const { return false; }
  // True: the kernel serves that queue in this process's place, where these features were negotiated.
  virtual bool IsServedByKernel(uint16_t /*index*/, uint64_t /*features*/) const { return false; }
  // The driver chose other vectors, or masked or unmasked some; only while active.
  virtual void InterruptsChanged() {}

  // When Pause returns nothing is in flight and guest memory is left alone until Resume; a device that does all its
  // work inside ProcessQueue has nothing to do.
  virtual void Pause() {}
  virtual void Resume() {}
  // After lock-down, once, before all but the identity above is asked: see DeviceModel.
  virtual Result<void> ReadInput() { return {}; }
  virtual void SetThrottle(control::DiskThrottle::Reader /*limits*/) {}
  virtual void LoseOutside() {}
  virtual control::LinkState SetLink(bool /*up*/) { return control::LinkState::DOWN; }
  virtual void ReportNet(control::NetReport::Builder /*report*/) const {}
  virtual void FollowLog() {}
  virtual unsigned AskPulse() { return 0; }

  // State of its own, beside the transport's; while paused.
  virtual void SaveDevice(capnp::AnyPointer::Builder /*state*/) const {}
  virtual Result<void> RestoreDevice(capnp::AnyPointer::Reader /*state*/) { return {}; }
};

}  // namespace bulkhead::device
