// SPDX-License-Identifier: Apache-2.0
// virtio-rng (virtio 1.2 §5.4): fills the driver's buffers with the host kernel's random bytes. Device thread; the
// buffers are the guest's.
#pragma once

#include "device-procs/common/event_loop.h"
#include "device-procs/common/virtio_device.h"
#include "ipc/guest_memory.h"

namespace bulkhead::device {

class VirtioRng final : public VirtioDevice {
 public:
  explicit VirtioRng(const GuestMemory& memory) : memory_(memory) {}

  uint16_t Type() const override { return 4; }
  uint32_t PciClass() const override { return 0x10'00'00; }  // encryption controller, as for entropy
  uint64_t Features() const override { return 0; }
  uint16_t QueueCount() const override { return 1; }
  uint16_t QueueMaxSize() const override { return 64; }
  std::span<const std::byte> Config() const override { return {}; }
  void WriteConfig(uint64_t, std::span<const std::byte>) override {}
  void Activate(uint64_t, VirtioTransport& transport) override { transport_ = &transport; }
  void Deactivate() override { transport_ = nullptr; }
  void ProcessQueue(uint16_t index) override;

 private:
  Result<void> Serve(Virtqueue& queue);
  Result<uint32_t> Fill(const Chain& chain);

  const GuestMemory& memory_;
  VirtioTransport* transport_ = nullptr;
  Chain chain_;
};

}  // namespace bulkhead::device
