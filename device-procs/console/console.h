// SPDX-License-Identifier: Apache-2.0
// The console process's device: a serial port, and beside it a virtio console where the VM has one. Device
// thread; regions, offsets and values are hostile.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "device-procs/common/device_model.h"
#include "device-procs/common/event_loop.h"
#include "device-procs/console/backend.h"
#include "device-procs/console/uart16550.h"

namespace bulkhead::device {

// The regions of the console process in the order of its grants; the last two only where there is a virtio
// console.
enum class ConsoleRegion : uint16_t { kUart, kVirtioConfig, kVirtioBar0 };

struct SerialSettings {
  OwnFd input;   // invalid: none yet, or none at all
  OwnFd output;  // invalid: discarded
  OutputStage stage;
  OwnFd irq;  // edge
};

// The ports of a console process, as Attach numbers them.
enum class ConsolePort : uint8_t { kSerial, kVirtio };

struct VirtioSide {
  std::unique_ptr<DeviceModel> model;  // null: none. Region 0 is configuration space, region 1 BAR 0
  FdBytePort* port = nullptr;          // the model's
};

class Console final : public DeviceModel {
 public:
  // Before lock-down; throws FatalError. `log` takes lines for the user.
  Console(EventLoop& loop, SerialSettings serial, FdBytePort::Log log, VirtioSide virtio);

  uint64_t Read(uint16_t region, uint64_t offset, uint8_t width) override;
  WriteEffect Write(uint16_t region, uint64_t offset, uint8_t width, uint64_t value) override;
  void Flush() override;
  void Pause() override;
  void Resume() override;
  void Save(capnp::AnyPointer::Builder state) const override;
  Result<void> Restore(capnp::AnyPointer::Reader state) override;
  bool ReadChanges(uint16_t region, uint64_t offset) const override;
  // A new peer for a port, in place of the one before.
  void Attach(uint8_t port, OwnFd input, OwnFd output) override;

 private:
  Result<void> RestoreParts(state::ConsoleState::Reader saved);

  FdBytePort serial_port_;
  Uart16550 uart_;
  FdBytePort* virtio_port_;
  std::unique_ptr<DeviceModel> virtio_;
};

}  // namespace bulkhead::device
