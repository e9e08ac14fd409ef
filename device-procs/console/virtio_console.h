// SPDX-License-Identifier: Apache-2.0
// virtio-console with one port (virtio 1.2 §5.3): two queues of bytes between the guest and a BytePort. Console
// process, device thread. Queues and configuration writes are the guest's, saved state anyone's: hostile.
//
// An outside that is slow holds up the guest's transmit queue, and nothing else: a buffer stays unused until all of it
// has been taken. Input is taken from the outside only where the guest has a buffer for it.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "device-procs/common/virtio_device.h"
#include "device-procs/console/byte_port.h"
#include "ipc/guest_memory.h"

namespace bulkhead::device {

// The outside's size in characters; zeros where it has none, or it is not known.
struct ConsoleSize {
  uint16_t columns = 0;
  uint16_t rows = 0;
};

class VirtioConsole final : public VirtioDevice {
 public:
  VirtioConsole(const GuestMemory& memory, std::unique_ptr<BytePort> port, ConsoleSize size = {});
  ~VirtioConsole() override;

  uint16_t Type() const override { return 3; }
  uint32_t PciClass() const override { return 0x07'80'00; }  // communication controller of no special kind
  uint64_t Features() const override;
  uint16_t QueueCount() const override { return 2; }
  uint16_t QueueMaxSize() const override { return 128; }
  std::span<const std::byte> Config() const override { return config_; }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override;
  void Activate(uint64_t features, VirtioTransport& transport) override;
  void Deactivate() override;
  void ProcessQueue(uint16_t index) override;
  void Pause() override;
  void Resume() override;
  void SaveDevice(capnp::AnyPointer::Builder state) const override;
  Result<void> RestoreDevice(capnp::AnyPointer::Reader state) override;

  // The outside changed its size (§5.3.4).
  void SetSize(ConsoleSize size);

 private:
  static constexpr size_t kConfigBytes = 12;

  Result<void> Receive(Virtqueue& queue);
  Result<void> Transmit(Virtqueue& queue);
  bool FlushEmergency();
  void PutSize(ConsoleSize size);

  const GuestMemory& memory_;
  std::unique_ptr<BytePort> port_;
  std::array<std::byte, kConfigBytes> config_{};
  VirtioTransport* transport_ = nullptr;
  bool paused_ = true;
  bool broken_ = false;  // the driver broke a queue: nothing more until it resets the device
  Chain receive_chain_;
  Chain transmit_chain_;
  bool transmitting_ = false;   // transmit_chain_ is out
  uint64_t transmit_done_ = 0;  // bytes of it, or of the next chain, that the outside has
  std::vector<std::byte> emergency_;
};

}  // namespace bulkhead::device
