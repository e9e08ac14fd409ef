// SPDX-License-Identifier: Apache-2.0
// libFuzzer: random accesses to every register of a virtio-pci function, kicks, pauses and restores of edited states,
// with a real device behind it that works on guest memory which the fuzzer fills.
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstdlib>
#include <cstring>

#include "device-procs/common/virtio_pci_driver.h"

namespace {

using namespace bulkhead;
using namespace bulkhead::device;
using test::FunctionDriver;

constexpr uint64_t kMemoryBytes = 64 * 1024;

void Require(bool holds) {
  if (!holds) std::abort();
}

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
    Require(offset <= config_.size() && data.size() <= config_.size() - offset);
    std::memcpy(config_.data() + offset, data.data(), data.size());
  }
  void Activate(uint64_t features, VirtioTransport& transport) override {
    Require(transport_ == nullptr && (features & test::kVersion1) != 0);
    transport_ = &transport;
  }
  void Deactivate() override {
    Require(transport_ != nullptr);
    transport_ = nullptr;
  }
  void ProcessQueue(uint16_t index) override {
    Require(transport_ != nullptr && transport_->Queue(index) != nullptr);
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

struct Access {
  uint8_t action;
  uint8_t width_log2;
  uint16_t offset;
  uint64_t value;
};

void Bring(FunctionDriver& driver) {
  driver.EnableMsix();
  if (!driver.Negotiate(test::kVersion1 | test::kEventIndex)) return;
  for (uint16_t i = 0; i < 2; ++i) {
    driver.SetUpQueue(i, {.size = 16,
                          .descriptors = Gpa{i * 0x1000u},
                          .available = Gpa{i * 0x1000u + 0x200},
                          .used = Gpa{i * 0x1000u + 0x400}});
  }
  driver.GoLive();
}

// Saves, changes one word of the message, and loads it into the same function.
void RestoreEdited(FunctionDriver& driver, uint64_t at, uint64_t change) {
  driver.function().Pause();
  capnp::MallocMessageBuilder message;
  driver.function().Save(message.getRoot<capnp::AnyPointer>());
  kj::Array<capnp::word> words = capnp::messageToFlatArray(message);
  uint64_t word;
  auto* target = words.begin() + at % words.size();
  std::memcpy(&word, target, sizeof word);
  word ^= change;
  std::memcpy(target, &word, sizeof word);
  try {
    capnp::FlatArrayMessageReader reader(words);
    (void)driver.function().Restore(reader.getRoot<capnp::AnyPointer>()).ok();
  } catch (const kj::Exception&) {
    // The message's frame was hit: the runtime's RPC layer is what sees that.
  }
  driver.function().Resume();
}

void Apply(FunctionDriver& driver, const GuestMemory& memory, const Access& access) {
  const auto width = static_cast<uint8_t>(1u << (access.width_log2 % 4));
  const uint64_t bar_offset = std::min<uint64_t>(access.offset % virtio_pci::kBarSize, virtio_pci::kBarSize - width);
  const uint64_t config_offset = std::min<uint64_t>(access.offset % 4096, 4096 - width);
  switch (access.action % 10) {
    case 0:
      driver.ReadConfig(config_offset, width);
      break;
    case 1:
    case 2:
      driver.WriteConfig(config_offset % 256, width, access.value);
      break;
    case 3:
      driver.ReadBar(bar_offset, width);
      break;
    case 4:
    case 5:
      driver.WriteBar(bar_offset, width, access.value);
      break;
    case 6:
      (void)memory.WriteObject(Gpa{access.offset}, access.value).ok();
      break;
    case 7:
      driver.Kick(static_cast<uint16_t>(access.value % 2));
      break;
    case 8:
      Bring(driver);
      break;
    default:
      RestoreEdited(driver, access.offset, access.value);
      break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const GuestMemory memory = test::MakeGuestMemory(kMemoryBytes);
  OrThrow(memory.Fill(Gpa{0}, kMemoryBytes, std::byte{0}));
  FunctionDriver driver(std::make_unique<PatternDevice>(memory), memory);
  driver.function().Resume();
  Access access;
  for (; size >= sizeof access; data += sizeof access, size -= sizeof access) {
    std::memcpy(&access, data, sizeof access);
    Apply(driver, memory, access);
  }
  return 0;
}
