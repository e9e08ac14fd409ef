// SPDX-License-Identifier: Apache-2.0
// For fuzz targets: a guest's driver without manners, before any virtio-pci function. It touches every register, writes
// guest memory, offers chains, kicks, pauses, and restores edited states. One thread, the device thread.
#pragma once

#include <memory>

#include "device-procs/common/virtio_pci_driver.h"
#include "ipc/fuzz_input.h"

namespace bulkhead::device::test {

class RudeDriver {
 public:
  // Of guest memory: what reaches beyond is beyond it.
  static constexpr uint64_t kMemoryBytes = 64 * 1024;
  static constexpr uint16_t kQueueSize = 16;

  // The memory is kept from one input to the next, as making it costs most, and zero at the start of each.
  static const GuestMemory& Memory() {
    static const GuestMemory memory = MakeGuestMemory(kMemoryBytes);
    return memory;
  }

  explicit RudeDriver(std::unique_ptr<VirtioDevice> device) : queues_(device->QueueCount()) {
    OrThrow(Memory().Fill(Gpa{0}, kMemoryBytes, std::byte{0}));
    driver_ = std::make_unique<FunctionDriver>(std::move(device), Memory());
    driver_->function().Resume();
  }
  // Of a device that goes on, with memory as it is, where a process that died stood; or somebody who says so.
  RudeDriver(std::unique_ptr<VirtioDevice> device, Journal journal) : queues_(device->QueueCount()) {
    driver_ = std::make_unique<FunctionDriver>(std::move(device), Memory(), Recorder(journal, true));
    if (!driver_->recorder().TakeOver(driver_->function()).ok()) return;
    driver_->function().Resume();
    driver_->RunPending();
  }

  void Step(bulkhead::fuzz::FuzzInput& input) {
    const auto action = input.Take<uint8_t>() % 16;
    const auto width = static_cast<uint8_t>(1u << input.Take<uint8_t>() % 4);
    switch (action) {
      case 0:
        driver_->ReadConfig(ConfigOffset(input, width), width);
        break;
      case 1:
        driver_->WriteConfig(ConfigOffset(input, width), width, input.Take<uint64_t>());
        break;
      case 2:
        driver_->ReadBar(BarOffset(input, width), width);
        break;
      case 3:
      case 4:
        driver_->WriteBar(BarOffset(input, width), width, input.Take<uint64_t>());
        break;
      case 5:
        // The common configuration, where most is decided.
        driver_->WriteBar(input.TakeBelow(0x40), width, input.Take<uint16_t>());
        break;
      case 6:
        WriteMemory(input);
        break;
      case 7:
        driver_->Kick(static_cast<uint16_t>(input.TakeBelow(queues_)));
        break;
      case 8:
      case 9:
        BringUp(input.Take<uint8_t>());
        break;
      case 10:
        driver_->function().Pause();
        break;
      case 11:
        driver_->function().Resume();
        break;
      case 12:
        driver_->function().Pause();
        bulkhead::fuzz::RestoreEdited(driver_->function(), input);
        driver_->function().Resume();
        break;
      default:
        Offer(input);
        break;
    }
  }

  FunctionDriver& driver() { return *driver_; }

 private:
  static constexpr uint64_t kQueuePart = 0x1000;
  static Gpa Descriptors(uint64_t queue) { return Gpa{queue * kQueuePart}; }
  static Gpa Available(uint64_t queue) { return Gpa{queue * kQueuePart + 0x200}; }
  static Gpa UsedRing(uint64_t queue) { return Gpa{queue * kQueuePart + 0x400}; }

  static uint64_t ConfigOffset(bulkhead::fuzz::FuzzInput& input, uint8_t width) {
    const uint64_t offset = input.TakeBelow(4096);
    // Most of the time what there is something at.
    return std::min<uint64_t>(offset >= 2048 ? offset : offset % 256, 4096u - width);
  }
  static uint64_t BarOffset(bulkhead::fuzz::FuzzInput& input, uint8_t width) {
    return std::min<uint64_t>(input.TakeBelow(virtio_pci::kBarSize), virtio_pci::kBarSize - width);
  }

  static void WriteMemory(bulkhead::fuzz::FuzzInput& input) {
    const Gpa to{input.Take<uint16_t>()};
    (void)Memory().Write(to, input.TakeBytes(input.Take<uint8_t>())).ok();
  }

  void BringUp(uint8_t features) {
    driver_->EnableMsix();
    uint64_t wanted = kVersion1;
    if ((features & 1) != 0) wanted |= kEventIndex;
    if ((features & 2) != 0) wanted |= kIndirectFeature;
    if ((features & 4) != 0) wanted = driver_->DeviceFeatures();
    if (!driver_->Negotiate(wanted)) return;
    for (uint16_t i = 0; i < queues_; ++i) {
      driver_->SetUpQueue(
          i, {.size = kQueueSize, .descriptors = Descriptors(i), .available = Available(i), .used = UsedRing(i)});
    }
    driver_->GoLive();
  }

  // A chain of up to four descriptors in the place that BringUp gives a queue, made available and kicked.
  void Offer(bulkhead::fuzz::FuzzInput& input) {
    const uint64_t queue = input.TakeBelow(queues_);
    const auto head = static_cast<uint16_t>(input.TakeBelow(kQueueSize));
    for (uint16_t left = 1 + input.Take<uint8_t>() % 4, at = head; left != 0; --left) {
      const auto next = static_cast<uint16_t>((at + 1) % kQueueSize);
      const RawDescriptor descriptor{
          .address = input.Take<uint16_t>(),
          .length = input.Take<uint16_t>(),
          .flags = static_cast<uint16_t>((input.Take<uint8_t>() & 7) | (left > 1 ? kNext : 0)),
          .next = next};
      OrThrow(Memory().WriteObject(Descriptors(queue) + 16u * at, descriptor));
      at = next;
    }
    const auto index = OrThrow(Memory().ReadObject<uint16_t>(Available(queue) + 2));
    OrThrow(Memory().WriteObject(Available(queue) + 4 + 2 * static_cast<unsigned>(index % kQueueSize), head));
    OrThrow(Memory().WriteObject(Available(queue) + 2, static_cast<uint16_t>(index + 1)));
    driver_->Kick(static_cast<uint16_t>(queue));
  }

  const uint16_t queues_;
  std::unique_ptr<FunctionDriver> driver_;
};

}  // namespace bulkhead::device::test
