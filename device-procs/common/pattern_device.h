// SPDX-License-Identifier: Apache-2.0
// For fuzz targets: a virtio device that works on guest memory and checks how its transport treats it. Device thread;
// what its driver does is hostile.
#pragma once

#include <array>
#include <cstring>

#include "device-procs/common/function_fuzz.h"

namespace bulkhead::device::test {

// Writes what a request has room for, as an entropy device would.
class PatternDevice final : public VirtioDevice {
 public:
  explicit PatternDevice(const GuestMemory& memory) : memory_(memory) {}
  uint16_t Type() const override { return 4; }
  uint32_t PciClass() const override { return 0x100000; }
  uint64_t Features() const override { return FeatureBit(3); }
  uint16_t QueueCount() const override { return 2; }
  uint16_t QueueMaxSize() const override { return 16; }
  std::span<const std::byte> Config() const override { return config_; }
  void WriteConfig(uint64_t offset, std::span<const std::byte> data) override {
    bulkhead::fuzz::Require(offset <= config_.size() && data.size() <= config_.size() - offset);
    std::memcpy(config_.data() + offset, data.data(), data.size());
  }
  void Activate(uint64_t features, VirtioTransport& transport) override {
    bulkhead::fuzz::Require(transport_ == nullptr && (features & kVersion1) != 0);
    transport_ = &transport;
  }
  void Deactivate() override {
    bulkhead::fuzz::Require(transport_ != nullptr);
    transport_ = nullptr;
  }
  void ProcessQueue(uint16_t index) override {
    bulkhead::fuzz::Require(transport_ != nullptr && transport_->Queue(index) != nullptr);
    Virtqueue& queue = *transport_->Queue(index);
    for (int i = 0; i < 32; ++i) {
      auto popped = queue.PopOrEnableKicks(chain_);
      if (popped.ok() && !*popped) break;
      if (!popped.ok() || !Fill() || !queue.Push(chain_.head, 1).ok()) {
        transport_->MarkNeedsReset();
        return;
      }
    }
    auto wanted = queue.NeedsInterrupt();
    if (wanted.ok() && *wanted) transport_->SignalQueue(index);
  }

 private:
  bool Fill() {
    const uint64_t size = std::min<uint64_t>(TotalBytes(chain_.writable), pattern_.size());
    return WritePieces(memory_, chain_.writable, 0, std::span(pattern_).first(size)).ok();
  }

  const GuestMemory& memory_;
  VirtioTransport* transport_ = nullptr;
  std::array<std::byte, 10> config_{};
  std::array<std::byte, 128> pattern_{};
  Chain chain_;
};

}  // namespace bulkhead::device::test
